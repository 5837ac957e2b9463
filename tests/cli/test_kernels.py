"""``leanconv kernels``: what runs where, told as the choice decides it."""

from __future__ import annotations

import json

import pytest

from leanconv import _native
from leanconv.cli import main
from leanconv.kernels.choice import NATIVE


def told(capsys: pytest.CaptureFixture[str], *words: str) -> dict[str, str]:
    assert main(["kernels", "--json", *words]) == 0
    return {one["operation"]: one["implementation"] for one in json.loads(capsys.readouterr().out)["operations"]}


def test_every_operation_is_told_and_the_environment_counts(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("LEANCONV_NATIVE", raising=False)
    found = told(capsys)
    assert set(found) == set(NATIVE)
    if _native.available():
        assert found["norm_act"] == found["separable_block"] == "native"
        small = told(capsys, "--shape", "1", "16", "8", "8")
        assert small["norm_act"] == small["separable_block"] == "torch"
        assert told(capsys, "--kernel", "7")["depthwise_weight"] == "native"
        assert told(capsys, "--shape", "4", "256", "1000", "--kernel", "31")["depthwise_forward"] == "native"
        assert told(capsys, "--dtype", "float64")["norm_act"] == "torch"
    monkeypatch.setenv("LEANCONV_NATIVE", "0")
    assert set(told(capsys).values()) == {"torch"}
    assert main(["kernels"]) == 0
    assert "off, LEANCONV_NATIVE=0" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--shape", "4", "256"], "kernels: --shape must be N C L or N C H W, each at least 1, got 4 256"),
        (["--dtype", "int8"], "kernels: --dtype must be one of float32, bfloat16, float64, got 'int8'"),
        (["--stride", "0"], "kernels: --stride must be at least 1, got 0"),
    ],
)
def test_bad_words_are_told(words: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["kernels", *words]) == 2
    assert message in capsys.readouterr().err
