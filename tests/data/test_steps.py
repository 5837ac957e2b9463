"""Training steps: cut into micro-batches, resumed, balanced; wrong labels on request."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from leanconv import data
from leanconv.data import DataSet, Split, balanced_order, batch_sizes, batches, class_weights, steps
from leanconv.errors import Error


def made(n: int = 37, classes: int = 3, side: int = 6) -> DataSet:
    g = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (n, 3, side, side), dtype=torch.uint8, generator=g)
    labels = torch.arange(n) % classes
    return DataSet.build(
        {"train": Split(images, labels), "val": Split(images[:3], labels[:3])}, ("a", "b", "c"), "made"
    )


def run(images: DataSet, size: int, **options: Any) -> list[list[data.Batch]]:
    return list(steps(images, size, **{"epoch": 2, "seed": 5, "policy": "crop_flip_cutout", **options}))


@settings(max_examples=60, deadline=None)
@given(n=st.integers(4, 60), size=st.integers(2, 60), parts=st.integers(1, 6), choice=st.data())
def test_parts_start_and_mine_change_no_image(n: int, size: int, parts: int, choice: st.DataObject) -> None:
    size, images = min(size, n), made(n)
    parts = min(parts, size)
    whole = next(batches(images, "train", n, epoch=2, seed=5, policy="crop_flip_cutout"))
    every = run(images, size, parts=parts)
    sizes = batch_sizes(n, size, 2 * parts)
    assert [sum(len(b.labels) for b in step) for step in every] == list(sizes)
    assert torch.equal(torch.cat([b.images for step in every for b in step]), whole.images)
    assert torch.equal(torch.cat([b.labels for step in every for b in step]), whole.labels)
    assert torch.cat([b.positions for step in every for b in step]).tolist() == list(range(n))
    for step in every:
        lengths = [len(b.labels) for b in step]
        assert max(lengths) - min(lengths) <= 1
        assert [b.offset for b in step] == [sum(lengths[:i]) for i in range(parts)]
        assert [int(b.positions[0]) - b.offset for b in step] == [int(step[0].positions[0])] * parts
    start = choice.draw(st.integers(0, len(every)))
    mine = choice.draw(st.lists(st.integers(0, parts - 1), unique=True))
    some = run(images, size, parts=parts, start=start, mine=mine)
    assert len(some) == len(every) - start
    for step, full in zip(some, every[start:], strict=True):
        assert [b.offset for b in step] == [full[part].offset for part in mine]
        assert all(torch.equal(b.images, full[part].images) for b, part in zip(step, mine, strict=True))


def test_without_parts_the_steps_are_the_batches() -> None:
    images = made()
    expected = batches(images, "train", 8, epoch=2, seed=5, policy="crop_flip_cutout")
    for (mine,), theirs in zip(run(images, 8), expected, strict=True):
        assert torch.equal(mine.images, theirs.images)
        assert torch.equal(mine.labels, theirs.labels)
        assert (mine.offset, theirs.offset) == (0, 0)


def test_a_batch_unpacks_as_three() -> None:
    batch = run(made(), 8)[0][0]
    images, labels, positions = batch
    assert images is batch.images
    assert labels is batch.labels
    assert positions is batch.positions


def test_skipped_steps_cost_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    images, made_of = made(), []
    real = data.batching.augment
    monkeypatch.setattr(data.batching, "augment", lambda *a: (made_of.append(len(a[0])), real(*a))[1])
    assert len(run(images, 8, start=3)) == 2
    assert made_of == [8, 5]
    assert run(images, 8, start=5) == []


@pytest.mark.parametrize(("n", "size", "least", "sizes"), [
    (10, 4, 2, (4, 4, 2)), (9, 4, 2, (4, 5)), (9, 4, 1, (4, 4, 1)), (11, 4, 4, (4, 7)), (12, 4, 4, (4, 4, 4)),
    (3, 4, 8, (3,)), (0, 4, 2, ()),
])  # fmt: skip
def test_a_small_rest_joins_the_batch_before(n: int, size: int, least: int, sizes: tuple[int, ...]) -> None:
    assert batch_sizes(n, size, least) == sizes


def test_the_sampler_draws_each_class_equally_often() -> None:
    labels = torch.tensor([0] * 90 + [1] * 9 + [2] * 2)
    seen = torch.zeros(101)
    for epoch in range(300):
        order = balanced_order(labels, 7, epoch)
        counts = labels[order].bincount(minlength=3)
        assert order.shape == (101,)
        assert int(counts.max() - counts.min()) <= 1
        seen += order.bincount(minlength=101)
    # Within a class every image comes as often as chance says.
    for label in range(3):
        drawn = seen[labels == label]
        expected = drawn.mean()
        chi2 = ((drawn - expected) ** 2 / expected).sum()
        df = len(drawn) - 1
        assert abs(float(chi2) - df) / (2 * df) ** 0.5 < 4
    assert balanced_order(labels, 7, 3).tolist() == balanced_order(labels, 7, 3).tolist()
    assert balanced_order(labels, 7, 3).tolist() != balanced_order(labels, 7, 4).tolist()
    halves = labels[balanced_order(labels, 7, 3)][:50].bincount(minlength=3)
    assert int(halves.min()) > 8, "classes are mixed, not one after the other"


def test_the_sampler_in_steps() -> None:
    images = made(30)
    skewed = Split(images.train.images, torch.tensor([0] * 20 + [1] * 8 + [2] * 2))
    images = DataSet.build({"train": skewed, "val": images.val}, ("a", "b", "c"), "made")
    order = balanced_order(skewed.labels, 5, 2)
    every = run(images, 8, balance="sampler", parts=2)
    assert torch.equal(torch.cat([b.labels for step in every for b in step]), skewed.labels[order])
    assert torch.cat([b.labels for step in every for b in step]).bincount().tolist() == [10, 10, 10]
    resumed = run(images, 8, balance="sampler", parts=2, start=2)
    assert torch.equal(resumed[0][1].images, every[2][1].images)
    plain = run(images, 8, balance="weights", policy="none")
    assert torch.cat([b.labels for step in plain for b in step]).bincount().tolist() == [20, 8, 2]


def test_class_weights_are_inverse_to_counts_with_mean_one() -> None:
    images = torch.zeros(30, 1, 4, 4, dtype=torch.uint8)
    labels = torch.tensor([0] * 20 + [1] * 8 + [3] * 2)
    val = Split(images[:1], labels[:1])
    weights = class_weights(DataSet.build({"train": Split(images, labels), "val": val}, tuple("abcd"), "made"))
    assert weights.dtype == torch.float32
    assert weights[labels].mean().item() == pytest.approx(1, rel=1e-6)
    assert (weights[0] * 20).item() == pytest.approx((weights[1] * 8).item(), rel=1e-6)
    assert (weights[0] * 20).item() == pytest.approx((weights[3] * 2).item(), rel=1e-6)
    assert weights[2] == 0


@pytest.mark.parametrize(
    ("size", "options", "message"),
    [
        (38, {}, "batch: must be at most the number of train images, 37, got 38"),
        (4, {"parts": 5}, "parts must satisfy 1 <= parts <= size=4, got parts=5"),
        (4, {"parts": 0}, "got parts=0"),
        (0, {}, "got parts=1"),
        (4, {"parts": 2, "mine": [2]}, "mine must be from 0 to parts - 1 = 1, got mine=[2]"),
        (4, {"mine": [-1]}, "got mine=[-1]"),
        (4, {"start": -1}, "start must satisfy 0 <= start <= 9 steps, got start=-1"),
        (4, {"start": 10}, "got start=10"),
        (4, {"balance": "samples"}, "balance must be one of none, weights, sampler, got 'samples'"),
        (4, {"policy": "photos"}, "(did you mean photo?)"),
    ],
)
def test_bad_arguments_are_refused_at_once(size: int, options: dict[str, Any], message: str) -> None:
    with pytest.raises(Error) as caught:
        steps(made(), size, **{"epoch": 0, "seed": 0, "policy": "none", **options})
    assert message in str(caught.value)


@pytest.mark.source("S23")
@pytest.mark.parametrize("share", [0.1, 0.4, 0.999])
def test_label_noise_replaces_that_share_of_training_labels_alone(share: float) -> None:
    plain, noisy = data.load("demo"), data.load("demo", label_noise=share)
    changed = noisy.train.labels != plain.train.labels
    assert int(changed.sum()) == round(share * 4500)
    assert torch.equal(noisy.train.clean, plain.train.labels)
    assert torch.equal(noisy.train.images, plain.train.images)
    assert torch.equal(noisy.val.labels, plain.val.labels)
    assert torch.equal(noisy.test.labels, plain.test.labels)
    assert plain.train.clean is None
    assert noisy.fingerprint != plain.fingerprint
    assert f"{round(share * 4500)} of 4500 training labels ({share:.0%}) were replaced" in noisy.notes[-1]
    # Each wrong class comes as often as chance says, and each class suffers equally.
    shift = (noisy.train.labels - plain.train.labels)[changed] % 10
    counts = shift.bincount(minlength=10)[1:].double()
    chi2 = ((counts - counts.mean()) ** 2 / counts.mean()).sum()
    assert abs(float(chi2) - 8) / 16**0.5 < 4
    again, other = data.load("demo", label_noise=share), data.load("demo", label_noise=share, seed=1)
    assert again.fingerprint == noisy.fingerprint
    assert other.fingerprint != noisy.fingerprint


@pytest.mark.parametrize("share", [-0.1, 1.0, 2.0])
def test_label_noise_out_of_range(share: float) -> None:
    with pytest.raises(Error, match="label_noise must satisfy 0 <= label_noise < 1, got label_noise="):
        data.load("demo", label_noise=share)
