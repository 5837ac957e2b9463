"""The choice of an implementation: pure, explained, and never silent where it was forced."""

from __future__ import annotations

import pytest
import torch

from leanconv import _native
from leanconv.errors import Error
from leanconv.kernels import choice, philox, threads


@pytest.fixture(autouse=True)
def plain_environment(monkeypatch):
    monkeypatch.delenv("LEANCONV_NATIVE", raising=False)
    monkeypatch.delenv("LEANCONV_ISA", raising=False)


def test_rules():
    def pick(**changes):
        arguments = {"op": "keep_mask", "shape": (4, 8), "dtype": torch.bool, "isa": "avx2", **changes}
        return choice.choose(**arguments)

    assert pick().implementation == "native"
    assert pick(forced=True).implementation == "native"
    assert pick(forced=False) == choice.Choice("torch", "LEANCONV_NATIVE=0")
    assert pick(isa=None) == choice.Choice("torch", "there is no native library")
    assert "not on cuda" in pick(device="cuda").why
    assert "no torch.float32" in pick(dtype=torch.float32).why


@pytest.mark.parametrize("lacking", [{"isa": None}, {"device": "cuda"}, {"dtype": torch.float32}])
def test_forced_and_impossible_is_an_error(lacking):
    arguments = {"op": "keep_exact", "shape": (4, 8), "dtype": torch.bool, "isa": "avx2", **lacking}
    with pytest.raises(Error, match=r"^LEANCONV_NATIVE=1: keep_exact must run in native code, got none: "):
        choice.choose(**arguments, forced=True)


def test_an_unknown_operation_is_an_error():
    with pytest.raises(Error, match=r"op must be one of keep_mask, keep_exact, .*, got op='warp'"):
        choice.choose("warp", (1,), torch.bool)


def test_explain(monkeypatch):
    monkeypatch.setenv("LEANCONV_NATIVE", "0")
    assert choice.explain("keep_mask", (2, 3)) == (
        "keep_mask (2, 3) on cpu: torch (LEANCONV_NATIVE=0); native code: off, LEANCONV_NATIVE=0"
    )
    monkeypatch.setenv("LEANCONV_NATIVE", "")
    expected = "native" if _native.available() else "torch"
    assert choice.explain("keep_mask").startswith(f"keep_mask () on cpu: {expected} (")


def test_the_environment_counts_at_call_time(monkeypatch):
    ran = []
    monkeypatch.setattr(philox, "_native_rows", lambda *a: ran.append("native") or philox.twin_mask(*a[1:]))
    monkeypatch.setitem(philox._TWINS, "keep_mask", lambda *a: ran.append("torch") or philox.twin_mask(*a))
    expected = []
    for value in ["0", "1", "0"] if _native.available() else ["0"]:
        monkeypatch.setenv("LEANCONV_NATIVE", value)
        philox.keep_mask(torch.tensor([1, 2]), 1, 4, 5)
        expected.append("torch" if value == "0" else "native")
    assert ran == expected


def test_forced_without_a_library_is_an_error(monkeypatch):
    monkeypatch.setattr(_native, "_open", lambda: "it is not there")
    _native._select.cache_clear()
    try:
        monkeypatch.setenv("LEANCONV_NATIVE", "1")
        with pytest.raises(Error, match=r"^LEANCONV_NATIVE=1: native code must be there, got none: it is not there$"):
            philox.keep_mask(torch.tensor([1, 2]), 1, 4, 5)
    finally:
        _native._select.cache_clear()


def test_torchs_pool_is_found():
    assert threads.parallel_for()  # from torch 2.10 on


def pick(op, geometry, shape=(4, 128, 28, 28), dtype=torch.float32, isa="avx512", **rest):
    return choice.choose(f"depthwise_{op}", shape, dtype, isa=isa, geometry=geometry, **rest)


def test_rules_of_the_depthwise_convolution():
    plain, seven, dilated = (3, 3, 1, 1, 1, 1, 1), (7, 7, 1, 1, 1, 1, 1), (3, 3, 1, 1, 2, 2, 1)
    assert pick("forward", plain) == choice.Choice("torch", "faster than native avx512 code: kernel 3x3, stride 1")
    assert pick("forward", plain, forced=True).implementation == "native"
    assert pick("input", plain).implementation == "torch"
    assert pick("input", (5, 5, 1, 1, 1, 1, 1)).implementation == "native"
    assert pick("weight", plain).implementation == "torch"
    assert pick("weight", seven, isa="scalar").implementation == "native"
    assert {pick(op, seven).implementation for op in ("forward", "input", "weight")} == {"native"}
    assert pick("weight", dilated).implementation == "native"
    assert pick("forward", (1, 31, 1, 1, 1, 1, 1)).implementation == "native"
    assert pick("forward", (1, 9, 1, 1, 1, 1, 1)).implementation == "torch"
    assert pick("input", (3, 3, 1, 1, 1, 1, 3)).implementation == "torch"
    assert pick("forward", (3, 3, 1, 1, 1, 1, 3)).implementation == "native"
    assert "7 channels are fewer than a vector's 16" in pick("weight", seven, shape=(4, 7, 28, 28)).why
    assert pick("forward", plain, dtype=torch.bfloat16).implementation == "torch"
    assert pick("forward", plain, dtype=torch.bfloat16, isa="avx2").implementation == "native"
    assert "no torch.float64" in pick("forward", seven, dtype=torch.float64).why
    with pytest.raises(Error, match="depthwise_forward must run in native code, got none"):
        pick("forward", seven, dtype=torch.float64, forced=True)


def test_the_depthwise_choice_is_explained():
    told = choice.explain("depthwise_weight", (4, 128, 28, 28), torch.float32, "cpu", (3, 3, 1, 1, 1, 1, 1))
    assert told.startswith("depthwise_weight (4, 128, 28, 28) on cpu: torch (")


@pytest.mark.parametrize(
    ("shape", "geometry", "wanted"),
    [
        ((4, 64, 16, 16), (1, 1, 1), "torch"),  # small
        ((4, 96, 32, 32), (1, 1, 1), "native"),
        ((4, 1280, 7, 7), (1, 1, 4), "torch"),  # many channels of few values
        ((4, 576, 14, 14), (1, 1, 0), "torch"),  # no activation to be had for nothing
        ((4, 276, 28, 28), (1, 1, 0), "native"),
        ((4, 12, 56, 56), (1, 1, 0), "native"),  # channels that fill no vector
        ((4, 3, 14, 14), (1, 1, 0), "torch"),
        ((4, 256, 64, 64), (0, 0, 0), "torch"),
        ((4, 96, 32, 32), (0, 0, 1), "native"),
        ((4, 16, 4, 4), (0, 0, 1), "torch"),
        ((4, 16, 4, 4), (0, 1, 1), "native"),  # frozen: not measured
    ],
)
def test_rules_of_the_batch_norm(shape, geometry, wanted):
    def pick(**rest):
        return choice.choose(
            "norm_act", shape, **{"dtype": torch.float32, "isa": "avx512", "geometry": geometry, **rest}
        )

    assert pick().implementation == wanted
    assert pick(dtype=torch.bfloat16).implementation == "native"
    assert pick(forced=True).implementation == "native"
    assert pick(geometry=()).implementation == "native"
    if wanted == "torch":
        assert pick().why.startswith("faster than native avx512 code: ")
