"""``leanconv cost``."""

import json

import pytest

from leanconv.cli import main


def printed(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    assert main(["cost", *words]) == 0
    return capsys.readouterr().out


def test_mobilenet_beside_its_dense_twin(capsys: pytest.CaptureFixture[str]) -> None:
    lines = printed(capsys, "mobilenet_v1", "--input", "3,224,224").splitlines()
    total = next(line.split() for line in lines if line.startswith("total"))
    assert total[1:3] == ["4,231,976", "568,740,352"]
    assert total[4:6] == ["29,294,088", "4,867,293,184"]
    assert any(line.split()[:2] == ["features.blocks.12", "SeparableConv2d"] for line in lines)
    assert any(line.split()[:2] == [".conv_pw", "PointwiseConv2d"] for line in lines)
    assert "the dense twin has 6.92 x the parameters, 8.56 x the MACs" in lines[-2]
    assert "FLOPs = 2 x MACs: 1,137,480,704 against 9,734,586,368" in lines[-1]


def test_records(capsys: pytest.CaptureFixture[str]) -> None:
    record = json.loads(printed(capsys, "mobilenet_v1", "--input", "3,128,128", "--width", "0.5", "--json"))
    assert record["options"] == {"width": 0.5, "in_chans": 3}
    layers, total = record["layers"], record["total"]
    for key in ("params", "macs", "bytes"):
        assert sum(layer[key] for layer in layers) == total[key]
        assert record["ratio"][key] == pytest.approx(record["twin"]["total"][key] / total[key])
    assert total["flops"] == 2 * total["macs"]


def test_the_batch_scales_arithmetic_not_parameters(capsys: pytest.CaptureFixture[str]) -> None:
    one, four = (json.loads(printed(capsys, "small", "--input", "3,32,32", "--batch", n, "--json")) for n in "14")
    assert four["total"]["macs"] == 4 * one["total"]["macs"]
    assert four["total"]["params"] == one["total"]["params"]


def test_without_a_twin_it_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    text = printed(capsys, "mlp", "--input", "3,16,16")
    assert "no dense twin: the network must have SeparableConv2d layers" in text
    record = json.loads(printed(capsys, "torch.nn:ReLU", "--input", "1,4,4", "--json"))
    assert record["twin"] is None
    assert "SeparableConv2d" in record["no_twin"]
    assert record["total"]["macs"] == 0


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["mobilenet"], "got 'mobilenet' (did you mean mobilenet_v1?)"),
        (["mobilenet_v1", "--input", "3,224"], "--input must be three integers >= 1 such as 3,224,224, got '3,224'"),
        (["mobilenet_v1", "--input", "3,a,4"], "--input must be three integers"),
        (["mobilenet_v1", "--input", "3,0,4"], "--input must be three integers"),
        (["mobilenet_v1", "--batch", "0"], "--batch must be an integer >= 1, got '0'"),
        (["mobilenet_v1", "--set", "in_chans=1"], "mobilenet_v1: the input must be (N, 1, H, W), got (1, 3, 224, 224)"),
        (["mobilenet_v1", "--set", "wdith=1"], "got wdith (did you mean width?)"),
        (["mobilenet_v1", "--set", "width"], "--set must be KEY=VALUE such as width=0.5, got 'width'"),
        (["mobilenet_v1", "--width", "broad"], "width must satisfy 0 < width <= 16, got width='broad'"),
        (["torch.nn:Flatten", "--set", "start=1"], "options must be among start_dim, end_dim, got start"),
        ([], "MODEL"),
    ],
)
def test_bad_input_is_one_sentence(words: list[str], sentence: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["cost", *words]) == 2
    shown = capsys.readouterr()
    assert sentence in shown.err
    assert shown.err.count("\n") == 1
    assert shown.out == ""
