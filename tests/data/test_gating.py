"""The gate: each fault is found, a sound set is clean."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from leanconv import data
from leanconv.data import DataSet, Report, Split, gate
from leanconv.data.comparing import channel_effects, class_shares, two_sample

NAMES = ("a", "b", "c")


def made(train: int = 300, test: int = 90, seed: int = 0) -> dict[str, Split]:
    g = torch.Generator().manual_seed(seed)

    def split(n: int) -> Split:
        coarse = torch.randint(0, 256, (n, 3, 4, 4), generator=g).float()
        images = torch.nn.functional.interpolate(coarse, (12, 12), mode="bilinear").round().to(torch.uint8)
        return Split(images, torch.arange(n) % 3)

    return {"train": split(train), "val": split(60), "test": split(test)}


def judged(splits: dict[str, Split]) -> Report:
    return gate(DataSet.build(splits, NAMES, "made"))


def codes(report: Report) -> dict[str, str]:
    return {finding.code: finding.severity for finding in report.findings}


def one(report: Report, code: str) -> data.Finding:
    (found,) = [finding for finding in report.findings if finding.code == code]
    assert found.message.count("\n") == 0
    return found


@pytest.mark.source("S22")
def test_sound_sets_are_clean() -> None:
    reports = [judged(made(seed=seed)) for seed in range(10)]
    assert [codes(report) for report in reports] == [{}] * 10
    assert all(report.clean for report in reports)
    assert gate(data.load("demo")).findings == ()


def test_the_same_set_gives_the_same_report_and_no_random_state_is_touched() -> None:
    splits = made()
    torch.manual_seed(3)
    before = torch.get_rng_state()
    np.random.seed(3)
    numpys = np.random.get_state()[1].tolist()
    first = judged(splits).to_dict()
    assert torch.equal(before, torch.get_rng_state())
    assert np.random.get_state()[1].tolist() == numpys
    assert json.loads(json.dumps(judged(splits).to_dict())) == json.loads(json.dumps(first))
    assert first["format_version"] == 1
    assert first["compared"] == "test"


def test_duplicates_across_splits_are_named() -> None:
    splits = made()
    splits["test"].images[5] = splits["train"].images[7]
    splits["test"].labels[5] = splits["train"].labels[7]
    found = one(judged(splits), "D301")
    assert (found.severity, found.count) == ("warning", 1)
    assert found.shown == ("train[7] = test[5]",)
    assert "1.1% of test is not unseen" in found.message


def test_many_duplicates_are_an_error_and_some_are_shown() -> None:
    splits = made()
    splits["test"].images[:30] = splits["train"].images[:30]
    report = judged(splits)
    found = one(report, "D301")
    assert (found.severity, found.count, len(found.shown)) == ("error", 30, 10)
    assert report.findings[0] is found
    assert not report.clean


def test_duplicates_within_a_split_and_under_two_classes() -> None:
    splits = made()
    splits["train"].images[3] = splits["train"].images[0]
    splits["val"].images[9] = splits["val"].images[0]
    report = judged(splits)
    assert codes(report) == {"D302": "note"}
    assert set(one(report, "D302").shown) == {"train[0] = train[3]", "val[0] = val[9]"}
    assert report.clean
    splits["train"].labels[3] = 2
    assert one(judged(splits), "D303").shown == ("train[0] = train[3]",)


@pytest.mark.source("S22")
def test_other_class_shares_are_found() -> None:
    splits = made(test=300)
    splits["test"] = Split(splits["test"].images, torch.tensor([0] * 160 + [1] * 80 + [2] * 60))
    found = one(judged(splits), "D401")
    assert "differ by 20% (chi-square" in found.message
    splits["test"] = Split(splits["test"].images, torch.tensor([0] * 105 + [1] * 100 + [2] * 95))
    assert "D401" not in codes(judged(splits))


@pytest.mark.source("S22")
def test_darker_test_images_are_found() -> None:
    splits = made()
    splits["test"] = Split((splits["test"].images.float() * 0.8).to(torch.uint8), splits["test"].labels)
    report = judged(splits)
    assert codes(report) == {"D402": "warning", "D403": "warning"}
    assert "lower in test" in one(report, "D402").message


@pytest.mark.source("S22")
def test_upside_down_images_with_equal_moments_are_found_by_the_two_sample_test_alone() -> None:
    """Brighter above in train, below in test: means and deviations are alike."""
    splits = made()
    sky = torch.linspace(60, 0, 12).round().to(torch.uint8)[:, None]
    lit = {name: split.images // 2 + sky for name, split in splits.items()}
    alike = {name: Split(images, splits[name].labels) for name, images in lit.items()}
    assert codes(judged(alike)) == {}
    turned = {**alike, "test": Split(lit["test"].flip(2), splits["test"].labels)}
    report = judged(turned)
    assert codes(report) == {"D403": "warning"}
    assert report.tests["two_sample"]["p"] == 0.001


def test_val_is_compared_where_there_is_no_test() -> None:
    splits = made()
    splits["val"] = Split(255 - splits["val"].images // 2, splits["val"].labels)
    del splits["test"]
    report = judged(splits)
    assert report.compared == "val"
    assert set(codes(report)) == {"D402", "D403"}


def test_imbalance_few_images_and_missing_classes() -> None:
    splits = made()
    splits["train"] = Split(splits["train"].images, torch.tensor([0] * 200 + [1] * 95 + [2] * 5))
    splits["val"] = Split(splits["val"].images, torch.arange(60) % 2)
    report = judged(splits)
    assert "40.0 times the training images of the smallest (a: 200, c: 5)" in one(report, "D203").message
    assert one(report, "D204").shown == ("c: 5",)
    assert one(report, "D202").shown == ("val/c",)


def test_noise_on_request_is_a_note() -> None:
    report = gate(data.load("demo", label_noise=0.2))
    assert codes(report) == {"D601": "note"}
    assert one(report, "D601").count == 900


def write(root: Path, change: Callable[[Path], None]) -> Path:
    random = np.random.default_rng(0)
    for split, n in (("train", 40), ("test", 20)):
        for i in range(n):
            path = root / split / "ab"[i % 2] / f"{i:02}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(random.integers(0, 256, (16, 16, 3), dtype=np.uint8)).save(path)
    change(root)
    return root


def test_what_loading_saw(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def change(root: Path) -> None:
        whole = (root / "train/a/00.png").read_bytes()
        (root / "train/a/00.png").write_bytes(whole[: len(whole) // 2])
        (root / "test/b/01.png").write_bytes(b"")
        (root / "test/b/03.png").write_text("text")
        (root / "train/b/broken.png").symlink_to("nowhere.png")
        Image.new("RGB", (70, 70)).save(root / "train/b/bomb.png")
        Image.new("RGB", (40, 40)).save(root / "train/b/big.png")
        Image.new("L", (20, 10)).save(root / "train/b/grey.png")
        (root / "train/c").mkdir()

    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    report = gate(data.load(write(tmp_path, change)))
    bad, bombs = one(report, "D101"), one(report, "D102")
    assert (bad.count, bombs.count) == (4, 2)
    assert set(bad.shown) == {
        "train/a/00.png: truncated", "test/b/01.png: zero bytes", "test/b/03.png: no known image format",
        "train/b/broken.png: no such file",
    }  # fmt: skip
    assert set(bombs.shown) == {"train/b/bomb.png: more than 1,000 pixels", "train/b/big.png: more than 1,000 pixels"}
    assert one(report, "D201").shown == ("train/c",)
    assert one(report, "D501").shown == ("RGB: 58", "L: 1")
    assert one(report, "D502").shown == ("16x16: 58", "20x10: 1")
    assert (report.total, report.largest) == (64, (16, 16))
    assert not report.clean


def test_a_found_duplicate_is_named_by_its_files(tmp_path: Path) -> None:
    def change(root: Path) -> None:
        (root / "test/a/copy.png").write_bytes((root / "train/a/02.png").read_bytes())

    report = gate(data.load(write(tmp_path, change)))
    assert [name.split(": ")[-1] for name in one(report, "D301").shown[0].split(" = ")] == [
        "train/a/02.png",
        "test/a/copy.png",
    ]


@pytest.mark.source("S22")
def test_chi_square_is_pearsons() -> None:
    """Against the statistic in a loop, and tail probabilities of tables (df 2: exp(-x/2))."""
    first, second = np.array([30, 50, 20]), np.array([25, 40, 40])
    shares = class_shares(first, second)
    total = first.sum() + second.sum()
    expected = 0.0
    for row in (first, second):
        for column in range(3):
            e = row.sum() * (first[column] + second[column]) / total
            expected += (row[column] - e) ** 2 / e
    assert shares.chi2 == pytest.approx(expected, rel=1e-12)
    assert shares.df == 2
    assert shares.p == pytest.approx(np.exp(-expected / 2), rel=1e-9)
    assert shares.distance == pytest.approx(np.abs(first / 100 - second / 105).sum() / 2)


def test_small_counts_are_tested_by_permutations() -> None:
    """Fisher's exact test of ((3, 0), (0, 3)) has p = 2 / 20."""
    shares = class_shares(np.array([3, 0]), np.array([0, 3]))
    assert shares.p == pytest.approx(0.1, abs=4 * (0.09 / 999) ** 0.5)
    assert class_shares(np.array([3, 0]), np.array([3, 0])).p == 1
    assert class_shares(np.array([3, 4]), np.array([0, 0])).p == 1


@pytest.mark.source("S22")
def test_p_is_even_where_nothing_differs() -> None:
    """At level 10 %, about one test in ten on equal distributions rejects, for each of the three tests."""
    shares, energies, effects = [], [], []
    for seed in range(100):
        splits = made(60, 60, seed=100 + seed)
        first, second = splits["train"].images, splits["test"].images
        energies.append(two_sample(first, second, seed).p)
        random = np.random.default_rng(seed)
        shares.append(
            class_shares(random.multinomial(60, [0.3] * 3 + [0.1]), random.multinomial(90, [0.3] * 3 + [0.1])).p
        )
        effects.append(max(abs(z) for _, z in channel_effects(first, second, seed).values()))
    # 10 expected of 100, deviation 3.
    assert 1 <= sum(p <= 0.1 for p in shares) <= 22
    assert 1 <= sum(p <= 0.1 for p in energies) <= 22
    assert sum(z > 4 for z in effects) == 0


def test_energy_is_as_written_out() -> None:
    splits = made(30, 20)
    first, second = splits["train"].images, splits["test"].images
    found = two_sample(first, second)
    x, y = ((torch.nn.functional.adaptive_avg_pool2d(s.double() / 255, 8)).flatten(1) for s in (first, second))

    def mean(a: torch.Tensor, b: torch.Tensor) -> float:
        return sum((p - q).norm().item() for p in a for q in b) / (len(a) * len(b))

    assert found.sampled == (30, 20)
    assert found.statistic == pytest.approx(2 * mean(x, y) - mean(x, x) - mean(y, y), rel=1e-4)


def test_sets_too_small_to_compare() -> None:
    tiny = Split(torch.zeros(1, 1, 2, 2, dtype=torch.uint8), torch.tensor([0]))
    report = gate(DataSet.build({"train": tiny, "val": tiny}, ("a", "b"), "made"))
    assert report.tests["two_sample"]["p"] == 1
    assert report.tests["channels"] == {}


@pytest.mark.source("S22")
def test_effects_are_cohens() -> None:
    splits = made(50, 40)
    first, second = splits["train"].images, splits["test"].images
    found = channel_effects(first, second)
    for what, of in (("mean", torch.Tensor.mean), ("deviation", lambda x: x.std(unbiased=False))):
        for channel in range(3):
            x, y = (torch.stack([of(image[channel].double()) for image in s]) for s in (first, second))
            pooled = ((49 * x.var() + 39 * y.var()) / 88).sqrt()
            effect = float((y.mean() - x.mean()) / pooled)
            assert found[f"{what} {channel}"] == pytest.approx((effect, effect / (1 / 50 + 1 / 40) ** 0.5), rel=1e-9)
