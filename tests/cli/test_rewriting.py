"""``leanconv fold``, ``apply``, ``remove`` and ``separate``: from a run or any network to a new run."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from leanconv import recipe, training
from leanconv.cli import main
from leanconv.techniques.separable import SeparableConv2d
from pictures import quick, trained

Capture = pytest.CaptureFixture[str]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    whole = recipe.override(quick(), **{"techniques.separable": False})
    return trained(tmp_path_factory.mktemp("rewriting"), whole)


@pytest.fixture(autouse=True)
def _here(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(place)


def outputs(run: str) -> torch.Tensor:
    opened = training.open_run(run)
    x = torch.randn(3, *opened.header.shape, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        result: torch.Tensor = opened.model(x)
    return result


def test_a_folded_run_is_a_run_that_answers_the_same(capsys: Capture) -> None:
    assert main(["fold", "runs/a", "--output", "folded", "--no-latency"]) == 0
    out, err = capsys.readouterr()
    assert "float64" in out
    assert "run: runs/folded" in err
    assert torch.allclose(outputs("runs/a"), outputs("runs/folded"), rtol=1e-4, atol=1e-5)
    model = training.open_run("runs/folded").model
    assert not any("BatchNorm" in type(m).__name__ or "Dropout" in type(m).__name__ for m in model.modules())
    told = json.loads(Path("runs/folded/certificate.json").read_text())
    assert told["float64"]["relative"] <= 1e-10
    record = training.open_run("runs/folded").record
    assert record.params == sum(p.numel() for p in model.parameters())
    assert any(note.startswith("rewritten: fold batchnorm") for note in record.notes)
    assert main(["eval", "runs/folded", "pics", "--json"]) == 0
    assert main(["runs"]) == 0


def test_runs_can_be_rewritten_again_and_again(capsys: Capture) -> None:
    assert main(["remove", "runs/a", "dropout", "--output", "b1", "--no-latency"]) == 0
    assert main(["fold", "runs/b1", "--output", "b2", "--no-latency"]) == 0
    assert len(training.open_run("runs/b2").header.surgery["steps"]) > 1  # type: ignore[index]
    assert torch.allclose(outputs("runs/a"), outputs("runs/b2"), rtol=1e-4, atol=1e-5)


def test_separate_keeps_a_budget_and_tells_the_accuracy(capsys: Capture) -> None:
    words = ["separate", "runs/a", "--budget", "macs=0.6", "--data", "pics", "--output", "lean", "--no-latency"]
    assert main([*words, "--epochs", "1", "--lr", "0.001", "--images", "32"]) == 0
    out = capsys.readouterr().out
    assert "accuracy" in out
    assert "learned from the original network for 1 epochs" in out
    lean = training.open_run("runs/lean")
    assert any(isinstance(m, SeparableConv2d) for m in lean.model.modules())
    assert lean.record.macs is not None
    assert lean.record.macs <= 0.6 * training.open_run("runs/a").record.macs  # type: ignore[operator]
    assert lean.record.test is not None


def test_a_dry_run_writes_nothing(capsys: Capture) -> None:
    assert main(["separate", "runs/a", "--budget", "params=0.7", "--dry-run", "--json", "--no-latency"]) == 0
    out, err = capsys.readouterr()
    assert json.loads(out)["edits"]
    assert "nothing was written" in err
    assert not Path("runs/none").exists()


def test_apply_takes_techniques_and_other_norms(capsys: Capture) -> None:
    words = ["--no-latency", "--data", "pics", "--images", "16"]
    assert main(["apply", "runs/a", "dropout", "--set", "p=0.3", "--set", "where=all", "--output", "d", *words]) == 0
    assert torch.equal(outputs("runs/a"), outputs("runs/d"))
    assert main(["apply", "runs/a", "torch", "--output", "t", *words]) == 0
    model = training.open_run("runs/t").model
    assert any(type(m) is nn.BatchNorm2d for m in model.modules())
    assert torch.allclose(outputs("runs/a"), outputs("runs/t"), rtol=1e-4, atol=1e-5)


def test_nothing_to_do_is_told_and_nothing_written(capsys: Capture) -> None:
    assert main(["remove", "runs/a", "separable", "--output", "none", "--no-latency"]) == 1
    assert "nothing changed" in capsys.readouterr().out
    assert not Path("runs/none").exists()


def made(num_classes: int = 3) -> nn.Sequential:
    """A network that is nobody's run."""
    return nn.Sequential(
        nn.Conv2d(3, 8, 3),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(8, num_classes),
    )


def test_any_network_with_weights_becomes_a_run(place: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture) -> None:
    (place / "ournet.py").write_text(
        "from torch import nn\n\ndef net(num_classes=3):\n    return nn.Sequential(nn.Conv2d(3, 8, 3), "
        "nn.BatchNorm2d(8), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, num_classes))\n"
    )
    monkeypatch.syspath_prepend(str(place))
    original = made().eval()
    original[1].running_mean.add_(1)  # type: ignore[operator, union-attr]
    save_file(original.state_dict(), place / "net.safetensors")
    words = [
        "fold",
        "ournet:net",
        "--weights",
        "net.safetensors",
        "--input",
        "3,16,16",
        "--output",
        "ours",
        "--no-latency",
    ]
    assert main(words) == 0
    x = torch.randn(2, 3, 16, 16)
    with torch.no_grad():
        assert torch.allclose(original(x), training.open_run("runs/ours").model(x), atol=1e-5)


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["fold", "runs/a"], "--output must name the new run"),
        (["fold", "runs/a", "--output", "a"], "must be a new one unless --overwrite"),
        (["fold", "runs/nothing", "--output", "x"], "model"),
        (["fold", "runs/a", "--output", "x", "--input", "3,8,8"], "--input goes with a MODEL"),
        (["separate", "runs/a", "--output", "x"], "either a budget or ranks"),
        (["separate", "runs/a", "--output", "x", "--budget", "flops=2"], "the budget must be such as"),
        (["separate", "runs/a", "--output", "x", "--budget", "macs=0.001"], "the budget must be at least macs="),
        (["separate", "runs/a", "--output", "x", "--budget", "macs=0.5", "--epochs", "1"], "needs --data"),
        (["separate", "runs/a", "--output", "x", "--ranks", "features"], "--ranks must be LAYER=N"),
        (["apply", "runs/a", "batchnrm", "--output", "x"], "a name must be one of"),
        (["apply", "runs/a", "dropout", "--set", "q=1", "--output", "x"], "options must be among"),
        (["fold", "runs/a", "--output", "x", "--images", "0"], "--images must be at least 1"),
    ],
)
def test_bad_words_are_one_sentence_and_write_nothing(words: list[str], told: str, capsys: Capture) -> None:
    assert main(words) == 2
    err = capsys.readouterr().err
    assert told in err
    assert "Traceback" not in err
    assert not Path("runs/x").exists()
