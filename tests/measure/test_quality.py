"""What one pass tells of a classifier, against plain float64 sums."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from leanconv import measure, results
from leanconv.data import DataSet, Split
from leanconv.errors import Error
from leanconv.results import Outcome, Score


class Fixed(nn.Module):
    """Gives back logits by the number that the first pixel of an image holds."""

    def __init__(self, logits: Tensor) -> None:
        super().__init__()
        self.register_buffer("logits", logits)

    def forward(self, x: Tensor) -> Tensor:
        return self.get_buffer("logits")[x[:, 0, 0, 0].round().long()]


def numbered(labels: list[int], classes: int) -> DataSet:
    """Image i is the number i, in the form that normalisation leaves alone."""
    n = len(labels)
    images = torch.arange(n, dtype=torch.uint8).view(n, 1, 1, 1)
    train = Split(torch.zeros(classes, 1, 1, 1, dtype=torch.uint8), torch.arange(classes))
    test = Split(images, torch.tensor(labels))
    names = tuple(f"c{i}" for i in range(classes))
    return DataSet(train, train, test, names, (0.0,), (1 / 255,), "", "made up")


def plain(logits: list[list[float]], labels: list[int]) -> dict[str, float]:
    """Every figure in loops over images and classes."""
    k, n = len(logits[0]), len(labels)
    answers, sure, surprise = [], [], []
    for row, label in zip(logits, labels, strict=True):
        top = max(row)
        whole = math.fsum(math.exp(v - top) for v in row)
        p = [math.exp(v - top) / whole for v in row]
        answers.append(row.index(top))
        sure.append(max(p))
        surprise.append(-(row[label] - top - math.log(whole)))
    pairs = list(zip(labels, answers, strict=True))
    recalls, f1s = [], []
    for c in range(k):
        true, called = sum(y == c for y in labels), sum(a == c for a in answers)
        both = sum(y == a == c for y, a in pairs)
        if true:
            recalls.append(both / true)
        if true or called:
            precision, recall = (both / called if called else 0.0), (both / true if true else 0.0)
            f1s.append(2 * precision * recall / (precision + recall) if precision + recall else 0.0)
    error = 0.0
    for b in range(15):
        inside = [i for i in range(n) if b / 15 < sure[i] <= (b + 1) / 15]
        if inside:
            right = sum(labels[i] == answers[i] for i in inside) / len(inside)
            error += len(inside) / n * abs(right - math.fsum(sure[i] for i in inside) / len(inside))
    return {
        "correct": sum(y == a for y, a in pairs),
        "loss": math.fsum(surprise) / n,
        "balanced": math.fsum(recalls) / len(recalls),
        "f1": math.fsum(f1s) / len(f1s),
        "error": error,
    }


@given(
    labels=st.lists(st.integers(0, 4), min_size=1, max_size=60),
    seed=st.integers(0, 999),
    scale=st.sampled_from([0.1, 1.0, 20.0]),
    size=st.integers(1, 9),
)
@settings(max_examples=60, deadline=None)
def test_against_plain_sums(labels: list[int], seed: int, scale: float, size: int) -> None:
    logits = scale * torch.randn(len(labels), 5, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    found = measure.classify(Fixed(logits), numbered(labels, 5), "test", size)
    expected = plain(logits.tolist(), labels)
    assert (found.score.correct, found.score.total) == (expected["correct"], len(labels))
    assert found.score.loss == found.negative_log_likelihood == pytest.approx(expected["loss"], rel=1e-12)
    assert found.balanced_accuracy == pytest.approx(expected["balanced"], rel=1e-12)
    assert found.macro_f1 == pytest.approx(expected["f1"], rel=1e-12)
    assert found.calibration_error == pytest.approx(expected["error"], rel=1e-9, abs=1e-12)
    assert measure.score(Fixed(logits), numbered(labels, 5), "test", size) == found.score
    answers = logits.argmax(1).tolist()
    for i in range(5):
        for j in range(5):
            assert found.confusion[i][j] == sum(y == i and a == j for y, a in zip(labels, answers, strict=True))


def outcome() -> Outcome:
    """Three classes and one without images: t = 4, 6, 0, 10."""
    return Outcome(("a", "b", "none", "c"), ((3, 1, 0, 0), (2, 3, 1, 0), (0, 0, 0, 0), (0, 0, 0, 10)), 0.5, 0.1)


def test_shares_by_hand() -> None:
    found = outcome()
    assert found.images == (4, 6, 0, 10)
    assert found.answers == (5, 4, 1, 10)
    assert found.recall[:2] == (3 / 4, 3 / 6)
    assert math.isnan(found.recall[2])
    assert found.precision == (3 / 5, 3 / 4, 0.0, 1.0)
    assert found.f1 == pytest.approx((6 / 9, 6 / 10, 0.0, 1.0))
    assert found.balanced_accuracy == pytest.approx((0.75 + 0.5 + 1) / 3)
    assert found.macro_f1 == pytest.approx((6 / 9 + 6 / 10 + 0 + 1) / 4)
    assert found.score == Score(16, 20, 0.5)
    assert found.worst(2) == [("b", 0.5), ("a", 0.75)]
    assert len(found.worst(9)) == 3
    assert found.confused(2) == [("b", "a", 2), ("a", "b", 1)]


def test_accuracy_hides_what_balanced_accuracy_shows() -> None:
    found = Outcome(("many", "few"), ((95, 0), (5, 0)), 0.2, 0.0)
    assert found.score.accuracy == 0.95
    assert found.balanced_accuracy == 0.5
    assert math.isnan(found.precision[1])


def test_plain_values_by_name_go_into_the_record(tmp_path: Path) -> None:
    told = outcome().to_dict()
    assert told["recall"] == {"a": 0.75, "b": 0.5, "none": None, "c": 1.0}
    assert told["confusion"]["b"] == {"a": 2, "b": 3, "none": 1}
    assert told["confusion"]["none"] == {}
    assert json.loads(json.dumps(told, allow_nan=False)) == told
    run = results.Run("a", "done", {}, "", {}, {}, quality={"test": told})
    results.write_run(tmp_path, run)
    assert results.read_run(tmp_path) == run


def test_records_from_before_have_no_quality(tmp_path: Path) -> None:
    results.write_run(tmp_path, results.Run("a", "done", {}, "", {}, {}))
    file = tmp_path / "run.json"
    values = json.loads(file.read_text())
    del values["quality"]
    file.write_text(json.dumps(values))
    assert results.read_run(tmp_path).quality == {}


def test_what_is_sure_and_wrong_counts_as_much_as_it_should() -> None:
    wrong = torch.tensor([[0.0, -math.inf], [0.0, -math.inf]], dtype=torch.float64)
    found = measure.classify(Fixed(wrong), numbered([1, 0], 2), "test")
    assert found.score.loss == math.inf
    assert found.calibration_error == 0.5
    assert found.confusion == ((1, 0), (1, 0))
    broken = measure.classify(Fixed(torch.full((2, 2), math.nan)), numbered([1, 0], 2), "test")
    assert broken.score.loss is not None
    assert math.isnan(broken.score.loss)
    assert math.isnan(broken.calibration_error)
    assert broken.score.total == 2


@pytest.mark.source("S7")
def test_several_networks_are_averaged_by_probability() -> None:
    g = torch.Generator().manual_seed(0)
    both = [torch.randn(7, 3, generator=g, dtype=torch.float64) for _ in range(2)]
    labels = [0, 1, 2, 2, 1, 0, 0]
    data = numbered(labels, 3)
    found = measure.classify_together([(Fixed(logits), data) for logits in both], "test", 3)
    p = (both[0].softmax(1) + both[1].softmax(1)) / 2
    assert found.score.correct == sum(int(p[i].argmax()) == y for i, y in enumerate(labels))
    assert found.score.loss == pytest.approx(-sum(math.log(p[i, y]) for i, y in enumerate(labels)) / 7, rel=1e-12)
    alone = measure.classify(Fixed(both[0]), data, "test")
    twice = measure.classify_together([(Fixed(both[0]), data)] * 2, "test")
    assert (twice.classes, twice.confusion) == (alone.classes, alone.confusion)
    assert twice.negative_log_likelihood == pytest.approx(alone.negative_log_likelihood)
    assert twice.calibration_error == pytest.approx(alone.calibration_error)
    for a, b in zip(twice.calibration, alone.calibration, strict=True):
        assert a == pytest.approx(b)
    assert [m[:3] for m in twice.mistakes] == [m[:3] for m in alone.mistakes]
    # Impossible for one, sure for the other: no probability is lost on the way.
    far = [torch.tensor([[0.0, -5000.0]], dtype=torch.float64), torch.tensor([[-5000.0, 0.0]], dtype=torch.float64)]
    one = numbered([0], 2)
    assert measure.classify_together([(Fixed(v), one) for v in far], "test").score.loss == pytest.approx(math.log(2))


@pytest.mark.parametrize("size", [1, 7, 100])
def test_bins_and_the_surest_mistakes_by_hand(size: int) -> None:
    g = torch.Generator().manual_seed(3)
    logits = 2 * torch.randn(60, 4, generator=g, dtype=torch.float64)
    labels = [i % 4 for i in range(60)]
    found = measure.classify(Fixed(logits), numbered(labels, 4), "test", size)
    p = logits.softmax(1)
    sure, answers = p.max(1)
    bins: dict[int, list[tuple[bool, float]]] = {}
    for i in range(60):
        bins.setdefault(math.ceil(float(sure[i]) * measure.quality.BINS), []).append(
            (int(answers[i]) == labels[i], float(sure[i]))
        )
    assert len(found.calibration) == len(bins)
    for (n, right, mean), key in zip(found.calibration, sorted(bins), strict=True):
        inside = bins[key]
        assert n == len(inside)
        assert right == pytest.approx(sum(r for r, _ in inside) / n)
        assert mean == pytest.approx(sum(s for _, s in inside) / n)
    wrong = sorted((i for i in range(60) if int(answers[i]) != labels[i]), key=lambda i: -float(sure[i]))
    assert [m[0] for m in found.mistakes] == wrong[:24]
    names = found.classes
    assert [m[1:3] for m in found.mistakes] == [(names[labels[i]], names[int(answers[i])]) for i in wrong[:24]]
    assert [m[3] for m in found.mistakes] == pytest.approx([float(sure[i]) for i in wrong[:24]])


def test_what_cannot_be_measured_is_told() -> None:
    net = Fixed(torch.zeros(3, 2))
    with pytest.raises(Error, match="split must be one of train, val, test, got 'tset'"):
        measure.classify(net, numbered([0, 1, 1], 2), "tset")
    with pytest.raises(Error, match="at least one network"):
        measure.classify_together([], "test")
    with pytest.raises(Error, match="must see the same images"):
        measure.classify_together([(net, numbered([0, 1, 1], 2)), (net, numbered([1, 1, 1], 2))], "test")
    with pytest.raises(Error, match="at least one image"):
        measure.Tally(("a", "b")).outcome()
    with pytest.raises(Error, match="confusion must be square"):
        Outcome(("a", "b"), ((1, 2),), 0.0, 0.0)


def test_the_network_is_left_as_it_was() -> None:
    net = nn.Sequential(nn.Flatten(), nn.BatchNorm1d(1), nn.Dropout(0.5), nn.Linear(1, 2)).train()
    before = {k: v.clone() for k, v in net.state_dict().items()}
    random = torch.get_rng_state()
    measure.classify(net, numbered([0, 1, 1], 2), "test")
    assert all(m.training for m in net.modules())
    assert all(torch.equal(v, before[k]) for k, v in net.state_dict().items())
    assert torch.equal(random, torch.get_rng_state())
