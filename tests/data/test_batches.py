"""Order, augmentation and batches: functions of (seed, epoch, position) alone."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from leanconv import data
from leanconv.data import DataSet, Split, augment, batch_sizes, batches, epoch_order, normalise
from leanconv.errors import Error


def made(n: int = 37, channels: int = 3, side: int = 12) -> DataSet:
    g = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (n, channels, side, side), dtype=torch.uint8, generator=g)
    labels = torch.arange(n) % 3
    val = Split(images[:5], labels[:5])
    return DataSet.build({"train": Split(images, labels), "val": val}, ("a", "b", "c"), "made up")


def test_the_order_is_a_permutation_that_seed_and_epoch_decide() -> None:
    assert epoch_order(0, 0, 0).tolist() == []
    orders = {tuple(epoch_order(50, seed, epoch).tolist()) for seed in range(5) for epoch in range(5)}
    assert len(orders) == 25
    assert all(sorted(order) == list(range(50)) for order in orders)
    with pytest.raises(Error, match="n must be at least 0, got n=-1"):
        epoch_order(-1, 0, 0)


def splitmix(z: int) -> int:
    """SplitMix64 in plain integers."""
    z = (z + 0x9E3779B97F4A7C15) % 2**64
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9 % 2**64
    z = (z ^ (z >> 27)) * 0x94D049BB133111EB % 2**64
    return z ^ (z >> 31)


@pytest.mark.parametrize(("seed", "epoch"), [(0, 0), (1, 0), (0, 7), (2**63 - 1, 99)])
def test_the_order_is_the_documented_hash(seed: int, epoch: int) -> None:
    key = splitmix(splitmix(splitmix(splitmix(seed) ^ epoch)) ^ 1)
    expected = sorted(range(100), key=lambda position: splitmix(position ^ key))
    assert epoch_order(100, seed, epoch).tolist() == expected


def test_the_order_is_the_same_in_every_process_and_release() -> None:
    assert epoch_order(10, 0, 0).tolist() == [1, 8, 0, 7, 3, 2, 9, 5, 4, 6]
    code = (
        "from leanconv.data import epoch_order as o; import torch; torch.manual_seed(7); print(o(1000, 3, 4).tolist())"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    torch.manual_seed(1)
    assert done.stdout.strip() == str(epoch_order(1000, 3, 4).tolist())


def test_the_order_is_even() -> None:
    """Every image is as often in the first half as chance says: z of the chi-square below 4."""
    n, epochs = 40, 2000
    first = torch.zeros(n)
    for epoch in range(epochs):
        first[epoch_order(n, 11, epoch)[: n // 2]] += 1
    chi2 = ((first - epochs / 2) ** 2 / (epochs / 4)).sum().item()
    assert abs(chi2 - n) / (2 * n) ** 0.5 < 4


def test_no_random_state_is_touched_or_read() -> None:
    torch.manual_seed(5)
    before = torch.get_rng_state()
    first = [b.images for b in batches(made(), "train", 8, epoch=1, seed=3, policy="flip_crop")]
    assert torch.equal(before, torch.get_rng_state())
    torch.manual_seed(6)
    again = [b.images for b in batches(made(), "train", 8, epoch=1, seed=3, policy="flip_crop")]
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))


@settings(max_examples=40, deadline=None)
@given(
    n=st.integers(2, 30),
    size=st.integers(1, 30),
    channels=st.sampled_from([1, 3]),
    policy=st.sampled_from(data.POLICIES),
    seed=st.integers(0, 2**63 - 1),
    epoch=st.integers(0, 1000),
)
def test_an_epoch_is_the_same_however_it_falls_into_batches(
    n: int, size: int, channels: int, policy: str, seed: int, epoch: int
) -> None:
    images = made(n, channels, 7)
    whole = next(batches(images, "train", n, epoch=epoch, seed=seed, policy=policy))
    parts = list(batches(images, "train", min(size, n), epoch=epoch, seed=seed, policy=policy))
    assert torch.equal(torch.cat([p.images for p in parts]), whole.images)
    assert torch.equal(torch.cat([p.labels for p in parts]), whole.labels)
    assert torch.cat([p.positions for p in parts]).tolist() == list(range(n))
    assert torch.equal(whole.labels, images.train.labels[epoch_order(n, seed, epoch)])
    # and image by image, in any order of positions, as another process would ask for its share
    raw = images.train.images[epoch_order(n, seed, epoch)]
    backwards = torch.arange(n).flip(0)
    alone = augment(raw[backwards], seed, epoch, backwards, policy).flip(0)
    assert torch.equal(normalise(alone, images.mean, images.std), whole.images)


def plain(image: torch.Tensor, dy: int, dx: int, flip: bool, border: str) -> torch.Tensor:
    """The augmentation written out, row by row and column by column."""
    _, h, w = image.shape

    def inside(i: int, side: int) -> int:
        if border == "edge":
            return min(max(i, 0), side - 1)
        i = abs(i)
        return i if i < side else 2 * (side - 1) - i

    rows = [inside(y + dy, h) for y in range(h)]
    columns = [inside((w - 1 - x if flip else x) + dx, w) for x in range(w)]
    return image[:, rows][:, :, columns]


@pytest.mark.source("S7")
@pytest.mark.parametrize(
    ("policy", "reach", "border"), [("flip_crop", 2, "reflect"), ("shift", 1, "edge"), ("shift_flip", 1, "edge")]
)
@pytest.mark.parametrize("channels", [1, 3])
def test_each_image_is_moved_by_whole_pixels_and_perhaps_mirrored(
    policy: str, reach: int, border: str, channels: int
) -> None:
    images = made(60, channels, 14).train.images
    moved = augment(images, 1, 2, torch.arange(60), policy)
    seen = set()
    for before, after in zip(images, moved, strict=True):
        fits = [
            (dy, dx, flip)
            for dy in range(-reach, reach + 1)
            for dx in range(-reach, reach + 1)
            for flip in ((False, True) if "flip" in policy else (False,))
            if torch.equal(plain(before, dy, dx, flip, border), after)
        ]
        assert len(fits) == 1
        seen.add(fits[0])
    assert {dy for dy, _, _ in seen} == {dx for _, dx, _ in seen} == set(range(-reach, reach + 1))
    assert {flip for _, _, flip in seen} == ({False, True} if "flip" in policy else {False})


def test_shifts_and_flips_are_even() -> None:
    """A one-pixel mark tells each shift; each of the 9 x 9 x 2 outcomes comes as often as chance says."""
    n, side = 16200, 32
    images = torch.zeros(n, 1, side, side, dtype=torch.uint8)
    images[:, 0, 12, 10] = 1  # off the centre: mirrored and shifted never coincide
    moved = augment(images, 5, 0, torch.arange(n), "flip_crop")
    place = moved.reshape(n, -1).argmax(1)
    counts = place.bincount(minlength=side * side)
    counts = counts[counts > 0].double()
    assert len(counts) == 9 * 9 * 2
    chi2 = ((counts - 100) ** 2 / 100).sum().item()
    assert abs(chi2 - 161) / (2 * 161) ** 0.5 < 4


def test_none_gives_the_images_themselves_and_dtype_is_kept() -> None:
    images = made().train.images
    positions = torch.arange(len(images))
    assert augment(images, 0, 0, positions, "none") is images
    assert augment(images[:0], 0, 0, positions[:0], "shift").shape == (0, 3, 12, 12)
    wide = augment(images.double(), 0, 0, positions, "shift")
    assert torch.equal(wide, augment(images, 0, 0, positions, "shift").double())
    single = augment(images[:, :, :1, :1], 0, 0, positions, "flip_crop")
    assert torch.equal(single, images[:, :, :1, :1])


def test_auto_is_chosen_by_the_channels() -> None:
    for channels, policy in ((1, "shift"), (3, "flip_crop")):
        images = made(9, channels).train.images
        positions = torch.arange(9)
        assert torch.equal(augment(images, 0, 0, positions, "auto"), augment(images, 0, 0, positions, policy))


@given(n=st.integers(0, 300), size=st.integers(1, 40))
@settings(max_examples=100, deadline=None)
def test_batches_cover_all_images_and_none_is_single(n: int, size: int) -> None:
    sizes = batch_sizes(n, size)
    assert sum(sizes) == n
    if size > 1 and n > 1:
        assert 1 not in sizes
    assert all(s == size for s in sizes[:-1])
    assert not sizes or sizes[-1] <= size + 1


def test_evaluation_goes_through_the_images_as_they_stand() -> None:
    images = made(10)
    parts = list(batches(images, "train", 4, policy="flip_crop"))
    assert [len(p.labels) for p in parts] == [4, 4, 2]
    x = torch.cat([p.images for p in parts])
    mean, std = (torch.tensor(v, dtype=torch.float64).view(1, -1, 1, 1) for v in (images.mean, images.std))
    ref = (images.train.images.double() / 255 - mean) / std
    assert (x.double() - ref).abs().max() <= 4 * torch.finfo(torch.float32).eps * ref.abs().max()
    assert torch.equal(torch.cat([p.labels for p in parts]), images.train.labels)
    assert [len(p.labels) for p in batches(images, "val", 100)] == [5]


def test_batches_are_float32_and_channels_last() -> None:
    for channels in (1, 3):
        batch = next(batches(made(9, channels), "train", 4, epoch=0, policy="auto"))
        assert batch.images.dtype == torch.float32
        assert batch.images.is_contiguous(memory_format=torch.channels_last)
        assert batch.images.stride()[1:] == (
            1,
            12 * channels,
            channels,
        )  # the layout is told by strides at one channel too
        assert batch.labels.dtype == batch.positions.dtype == torch.int64


def test_floating_images_are_not_normalised_in_place() -> None:
    x = torch.full((2, 1, 3, 3), 51.0)
    assert normalise(x, (0.1,), (0.5,)).unique().item() == pytest.approx((0.2 - 0.1) / 0.5, rel=1e-6)
    assert x.unique().tolist() == [51.0]


def test_the_set_is_never_written_to() -> None:
    images = made(20)
    before = images.train.images.clone()
    for epoch in (None, 0):
        for batch in batches(images, "train", 7, epoch=epoch, policy="none"):
            batch.images.zero_()
            batch.labels.zero_()
    assert torch.equal(images.train.images, before)
    assert images.train.labels.tolist() == [i % 3 for i in range(20)]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("test", 4, None, "none"), "split must be one of train, val, got 'test'"),
        (("train", 0, None, "none"), "size must be at least 1, got size=0"),
        (("train", 38, 0, "none"), "batch: must be at most the number of train images, 37, got 38"),
        (("train", 4, 0, "flips"), "crop_flip_cutout, photo, photo_light, got 'flips'"),
    ],
)
def test_bad_arguments_are_refused_at_once(arguments: tuple[str, int, int | None, str], message: str) -> None:
    split, size, epoch, policy = arguments
    with pytest.raises(Error) as caught:
        batches(made(), split, size, epoch=epoch, policy=policy)
    assert message in str(caught.value)


def test_bad_shapes() -> None:
    with pytest.raises(
        Error, match=r"augment: images must be \(N, C, H, W\) and positions \(N,\), got \(3, 4, 4\) and \(3,\)"
    ):
        augment(torch.zeros(3, 4, 4), 0, 0, torch.arange(3), "shift")
    with pytest.raises(Error, match="Split: images must be uint8"):
        Split(torch.zeros(3, 1, 4, 4), torch.zeros(3, dtype=torch.int64))
    with pytest.raises(Error, match="Split: images must be uint8"):
        Split(torch.zeros(3, 1, 4, 4, dtype=torch.uint8), torch.zeros(2, dtype=torch.int64))
