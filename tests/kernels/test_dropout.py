"""Dropout without a stored mask: the bits of the reference on every instruction set, in every layout, both passes."""

from __future__ import annotations

import itertools
import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.autograd import forward_ad
from torch.utils.checkpoint import checkpoint

from leanconv import _native
from leanconv.errors import Error
from leanconv.kernels import dropout as module
from leanconv.kernels import philox
from leanconv.kernels.dropout import dropout, dropout_reference, mask_of
from leanconv.techniques.dropout import Dropout, Dropout2d, keyed

LIBRARY = _native.load()
ISAS = LIBRARY.isas if LIBRARY else ()  # none: torch's path alone, in the tests that name no instruction set
KEY = torch.tensor([-(2**62) + 12345, 2**32 - 1])
LIMITS = (0, 1, 20000, 32768, 65000, 65535)
KINDS = list(itertools.product((False, True), repeat=2))  # exact, batch


@pytest.fixture(params=ISAS)
def isa(request: Any, monkeypatch: pytest.MonkeyPatch) -> str:
    """Every instruction set of this machine, one after the other."""
    monkeypatch.setenv("LEANCONV_ISA", request.param)
    return str(request.param)


@pytest.fixture(params=["0", *ISAS])
def way(request: Any, monkeypatch: pytest.MonkeyPatch) -> str:
    """torch's path, then every instruction set."""
    monkeypatch.setenv("LEANCONV_NATIVE" if request.param == "0" else "LEANCONV_ISA", request.param)
    return str(request.param)


def drawn(*shape: int, dtype: torch.dtype = torch.float32, last: bool = False) -> Tensor:
    x = torch.randn(shape, generator=torch.Generator().manual_seed(4)).to(dtype)
    return x.movedim(1, -1).contiguous().movedim(-1, 1) if last else x


def units_of(x: Tensor) -> int:
    return x.numel() // (x.shape[0] if x.dim() > 1 else 1)


def bits(x: Tensor) -> Tensor:
    return x.contiguous().view(torch.int32 if x.dtype == torch.float32 else torch.int16)


def check(x: Tensor, limit: int, exact: bool, batch: bool, key: Tensor = KEY) -> None:
    """Forward and backward: equal bits, shapes and strides."""
    arguments = (key, limit, 1.7, exact, batch)
    want = x * mask_of(x.shape, *arguments[:2], exact, batch) * 1.7
    x = x.detach().requires_grad_()
    y = dropout(x, *arguments)
    assert torch.equal(bits(y.detach()), bits(want.detach()))
    assert y.dtype == x.dtype
    counted = [d for d in range(x.dim()) if x.shape[d] > 1]  # what a stride of one entry is means nothing
    like = torch.empty_like(x)
    assert [y.stride(d) for d in counted] == [like.stride(d) for d in counted]
    (dx,) = torch.autograd.grad(y, x, x.detach())
    assert torch.equal(bits(dx), bits(want.detach()))


def shapes_around(isa: str) -> list[tuple[int, ...]]:
    lanes = {"scalar": 4, "neon": 4, "avx2": 8, "avx512": 16}.get(isa, 4)
    lengths = {1, lanes - 1, lanes, lanes + 1, 255, 256, 257, 4095, 4096, 4097, 8200}
    return [(n, length) for length in sorted(lengths) for n in (1, 3)]


@pytest.mark.source("S2")
@pytest.mark.parametrize(("exact", "batch"), KINDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
def test_the_bits_of_the_reference(exact: bool, batch: bool, dtype: torch.dtype, way: str) -> None:
    for shape in [(5,), *shapes_around(way), (37, 3), (3, 40, 33)]:
        x = drawn(*shape, dtype=dtype)
        for limit in {0, units_of(x) // 2, units_of(x) - 1} if exact else LIMITS:
            check(x, limit, exact, batch)


@pytest.mark.source("S2")
@pytest.mark.parametrize(("exact", "batch"), KINDS)
@pytest.mark.parametrize("last", [False, True], ids=["channels_first", "channels_last"])
def test_maps_in_both_memory_formats(exact: bool, batch: bool, last: bool, isa: str) -> None:
    shapes = [
        (2, 3, 7, 7),
        (5, 16, 8, 8),
        (3, 33, 17, 9),
        (2, 130, 30, 31),
        (3, 20, 4, 5, 6),
        (9, 5, 1, 3),
        (2, 7, 1, 1),
    ]
    for shape, dtype in itertools.product([*shapes, (1, 4096, 2, 1), (1, 4097, 1, 2)], (torch.float32, torch.bfloat16)):
        x = drawn(*shape, dtype=dtype, last=last)
        for limit in (units_of(x) // 3,) if exact else (20000, 65535):
            check(x, limit, exact, batch)


@settings(max_examples=80, deadline=None)
@given(
    sizes=st.one_of(
        st.tuples(st.integers(1, 12), st.integers(1, 5000)),
        st.tuples(st.integers(1, 6), st.integers(1, 90), st.integers(1, 20), st.integers(1, 20)),
        st.tuples(st.integers(1, 9)),
    ),
    key=st.tuples(st.integers(-(2**63), 2**63 - 1), st.sampled_from([0, 1, 2**32 - 2, 2**40 + 3])),
    kind=st.sampled_from(KINDS),
    half=st.booleans(),
    last=st.booleans(),
    data=st.data(),
)
def test_any_shape_key_and_limit(sizes: Any, key: Any, kind: Any, half: bool, last: bool, data: Any) -> None:
    x = drawn(*sizes, dtype=torch.bfloat16 if half else torch.float32, last=last and len(sizes) > 2)
    limit = data.draw(st.integers(0, units_of(x) - 1) if kind[0] else st.integers(0, 65535))
    check(x, limit, *kind, torch.tensor(key))


def test_every_number_of_a_sample_by_the_plain_definition(way: str) -> None:
    """Against one counter in plain ints, for maps whose units are counted channels last."""
    key, limit = torch.tensor([77, 2**32]), 30000
    y = dropout(torch.ones(2, 5, 3, 2), key, limit, 2.0)
    for n, c, h, w in itertools.product(range(2), range(5), range(3), range(2)):
        e = (h * 2 + w) * 5 + c
        word = philox.philox((e // 8, 0, n, 1), (77, 0))[e // 2 % 4]
        assert float(y[n, c, h, w]) == (2.0 if word >> 16 * (e % 2) & 0xFFFF >= limit else 0.0)


def test_never_is_a_row_stopped_however_it_is_cut(isa: str) -> None:
    """At the largest threshold most parts of a row stop, and many rows of 9,000 do: one number of each is kept."""
    stopped = 0
    for start in range(0, 60, 6):
        key = torch.tensor([8, start])
        x = drawn(6, 9000).abs() + 1
        y = dropout(x, key, 65535, 3.0)
        keep = philox.twin_mask(key, 6, 9000, 65535, False)
        assert torch.equal(y != 0, keep)
        stopped += int((keep.sum(1) == 1).sum())
        maps = x.view(6, 90, 10, 10)
        assert torch.equal(dropout(maps, key, 65535, 3.0) != 0, keep.view(6, 10, 10, 90).movedim(-1, 1))
    assert stopped > 20


def test_threads_change_no_bit(isa: str) -> None:
    before, x = torch.get_num_threads(), drawn(3, 41, 70, 69)
    for last, (exact, batch) in itertools.product((False, True), KINDS):
        found, given = [], x.to(memory_format=torch.channels_last) if last else x
        try:
            for threads in (1, 2, 3):
                torch.set_num_threads(threads)
                found.append(dropout(given, KEY, 30000, 1.5, exact, batch))
        finally:
            torch.set_num_threads(before)
        want = dropout_reference(x, KEY, 30000, 1.5, exact, batch)
        assert all(torch.equal(y, want) for y in found)


def test_misaligned_memory_stays_inside_its_fences() -> None:
    if LIBRARY is None:
        pytest.skip("there is no native library")
    for (sizes, dtype), name, shift in itertools.product(
        [((3, 131, 0), torch.float32), ((2, 9 * 35, 9), torch.float32), ((3, 301, 0), torch.bfloat16)],
        LIBRARY.isas,
        range(4),
    ):
        count = sizes[0] * sizes[1]
        room, source = torch.full((count + 8,), 7, dtype=dtype), drawn(count + 8, dtype=dtype)
        at, item = slice(shift, shift + count), room.element_size()
        LIBRARY.dropout(
            sizes, (99, 5, 30000), 2.0, (source.data_ptr() + shift * item, room.data_ptr() + shift * item, None),
            dtype=int(dtype == torch.bfloat16), isa=name,
        )  # fmt: skip
        shape = (sizes[0], 9, 7, 5) if sizes[2] else sizes[:2]
        want = dropout_reference(source[at].view(shape), torch.tensor([99, 5]), 30000, 2.0)
        assert torch.equal(room[at], want.flatten()), name
        assert (room[:shift] == 7).all()
        assert (room[shift + count :] == 7).all()


def test_views_that_overlap_are_offset_or_lie_otherwise(isa: str) -> None:
    whole = drawn(6, 5, 7, 7)
    for x in (
        whole[:, :, 1:-1, 1:-1],
        whole[1::2],
        whole.to(memory_format=torch.channels_last)[:, 1:4],
        whole.transpose(2, 3),
        whole.permute(3, 1, 0, 2),
        drawn(6, 1, 4, 4).expand(6, 5, 4, 4),
        drawn(5, 1).expand(5, 300),
        drawn(300, 5).t(),
        drawn(1 + 6 * 45)[1:].view(6, 45),
        drawn(4, 30, 11).movedim(1, 2),
    ):
        for exact, batch in KINDS:
            check(x, units_of(x) // 2 if exact else 30000, exact, batch)


def test_empty_inputs(way: str) -> None:
    for shape in ((0,), (0, 5), (3, 0), (0, 3, 2, 2), (4, 3, 0, 2)):
        x = torch.zeros(shape, requires_grad=True)
        y = dropout(x, KEY, 300, 2.0)
        assert y.shape == shape
        y.sum().backward()
        assert x.grad.shape == shape


def test_what_is_not_finite_shows_as_in_torch(way: str) -> None:
    values = torch.tensor([math.nan, math.inf, -math.inf, -0.0, 0.0, -1.0, 1e-40, 3e38])
    for dtype in (torch.float32, torch.bfloat16):
        x = values.repeat(4, 12).to(dtype)
        want = x * mask_of(x.shape, KEY, 30000) * 1.5
        y = dropout(x, KEY, 30000, 1.5)
        assert torch.equal(y.isnan(), want.isnan())
        assert y.isnan().any()
        finite = ~y.isnan()
        assert torch.equal(bits(y)[finite], bits(want)[finite])  # signs of zeros and numbers below the normal range too


def test_only_the_key_is_kept(isa: str) -> None:
    x, kept = drawn(4, 700).requires_grad_(), []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        for mask, count in itertools.product(("sample", "batch"), ("bernoulli", "exact")):
            Dropout(0.4, mask, count).train()(x)
    assert [tuple(t.shape) for t in kept] == [(2,)] * 4


@pytest.mark.parametrize(("exact", "batch"), KINDS)
def test_gradients_of_gradients(exact: bool, batch: bool, way: str) -> None:
    wide = drawn(3, 7, dtype=torch.float64).requires_grad_()
    for function in (dropout, dropout_reference):
        run = lambda x, f=function: f(x, KEY, 3, 1.5, exact, batch)  # noqa: E731
        assert torch.autograd.gradcheck(run, wide)
        assert torch.autograd.gradgradcheck(run, wide)
    x = drawn(3, 7).requires_grad_()
    factor = dropout_reference(torch.ones(3, 7), KEY, 3, 1.5, exact, batch)
    (first,) = torch.autograd.grad(dropout(x.square(), KEY, 3, 1.5, exact, batch).sum(), x, create_graph=True)
    assert torch.equal(first, 2 * x * factor)
    (second,) = torch.autograd.grad(first.sum(), x)
    assert torch.equal(second, 2 * factor)


@pytest.mark.filterwarnings(
    "ignore:.torch.jit.script. is deprecated:DeprecationWarning"
)  # torch's own, on its first dual
def test_forward_mode_and_function_transforms(way: str) -> None:
    x, t = drawn(4, 9), drawn(4, 9).flip(0)
    want = dropout_reference(t, KEY, 30000, 2.0)
    with forward_ad.dual_level():
        y = dropout(forward_ad.make_dual(x.clone().requires_grad_(), t), KEY, 30000, 2.0)
        assert torch.equal(forward_ad.unpack_dual(y).tangent, want)
    run = lambda x: dropout(x, KEY, 30000, 2.0)  # noqa: E731
    assert torch.equal(torch.func.jvp(run, (x,), (t,))[1], want)
    assert torch.equal(torch.func.grad(lambda x: (run(x) * t).sum())(x), want)
    many = torch.stack([x, t])
    assert torch.equal(torch.func.vmap(run)(many), torch.stack([run(x), run(t)]))
    learned = x.clone().requires_grad_()
    (rows,) = torch.autograd.grad(run(learned), learned, torch.stack([t, x]), is_grads_batched=True)
    assert torch.equal(rows, torch.stack([want, run(x)]))


def test_the_operation_passes_torchs_own_checks(way: str) -> None:
    for x in (drawn(3, 20), drawn(2, 3, 4, 5), drawn(2, 3, 4, 5, last=True), drawn(3, 1).expand(3, 4)):
        for exact, batch in KINDS:
            inputs = (x.detach().requires_grad_(), KEY, 3, 1.5, exact, batch)
            torch.library.opcheck(torch.ops.leanconv.dropout.default, inputs)


@pytest.mark.parametrize("dynamic", [False, True])
def test_a_compiled_layer_gives_the_same_bits(dynamic: bool, way: str) -> None:
    for make, shapes in (
        (lambda: Dropout(0.4), [(4, 37), (6, 37)]),
        (lambda: Dropout(0.4, "batch", "exact"), [(4, 3, 5, 5), (6, 3, 5, 5)]),
        (lambda: Dropout2d(0.4), [(4, 3, 5, 5)]),
    ):
        torch.compiler.reset()
        layer, other = make(), make()
        compiled = torch.compile(layer, fullgraph=True, dynamic=dynamic, backend="aot_eager")
        for shape in shapes:
            found = []
            for run, of in ((layer, layer), (compiled, layer), (other, other)):
                x = drawn(*shape).requires_grad_()
                with keyed(1, 2):
                    y = run(x)
                y.backward(x.detach())
                found.append((y.detach(), x.grad, of.last_mask))
            for a, b in itertools.product(found[:1], found[1:]):
                assert all(torch.equal(i, j) for i, j in zip(a, b, strict=True))


def test_autocast_inference_mode_and_checkpoints(way: str) -> None:
    layer, x = Dropout(0.4).train(), drawn(4, 37)

    def run(x: Tensor) -> Tensor:
        with keyed(5, 5):
            y: Tensor = layer(x)
        return y

    want = run(x)
    with torch.inference_mode():
        assert torch.equal(run(x), want)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(run(x), want)
    for reentrant in (False, True):
        learned = x.clone().requires_grad_()
        checkpoint(lambda t: run(t).square(), learned, use_reentrant=reentrant).sum().backward()
        other = x.clone().requires_grad_()
        run(other).square().sum().backward()
        assert torch.equal(learned.grad, other.grad)


def test_the_layer_keeps_its_bits(way: str) -> None:
    """As x * keep * scale with the mask that it tells, whichever way it ran."""
    for mask, count, shape in itertools.product(
        ("sample", "batch"), ("bernoulli", "exact"), [(6, 31), (4, 5, 9), (4, 5, 6, 7), (33,)]
    ):
        layer, x = Dropout(0.3, mask, count).train(), drawn(*shape)
        y = layer(x)
        keep = layer.last_mask
        assert keep.shape == ((1, *shape[1:]) if mask == "batch" and len(shape) > 1 else shape)
        assert torch.equal(y, x * keep * layer._scale(shape))
        assert layer.last_mask is keep
        assert layer.eval().last_mask is None


def test_other_dtypes_are_torchs(way: str) -> None:
    for dtype in (torch.float64, torch.float16, torch.complex64):
        x = drawn(4, 50).to(dtype)
        assert torch.equal(dropout(x, KEY, 30000, 1.5), x * mask_of(x.shape, KEY, 30000) * 1.5)


def test_native_code_runs_where_the_choice_says(monkeypatch: pytest.MonkeyPatch) -> None:
    ran: list[tuple[int, ...]] = []
    real = module._native_dropout
    monkeypatch.setattr(module, "_native_dropout", lambda x, *a: ran.append(tuple(x.shape)) or real(x, *a))
    for value in ("0", "1") if _native.available() else ("0",):
        monkeypatch.setenv("LEANCONV_NATIVE", value)
        ran.clear()
        dropout(drawn(3, 9), KEY, 30000, 1.5)
        torch.ops.leanconv.dropout(drawn(2, 9), KEY, 30000, 1.5, False, False)
        assert ran == ([(3, 9), (2, 9)] if value == "1" else [])


def test_bad_arguments_are_told(way: str) -> None:
    x = drawn(3, 8)
    with pytest.raises(Error, match=r"dropout: x must have at least one dimension, got a scalar"):
        dropout(torch.tensor(1.0), KEY, 3, 2.0)
    with pytest.raises(Error, match=r"0 <= threshold <= 65535|0 <= limit <= 65535, got limit=65536"):
        dropout(x, KEY, 65536, 2.0)
    with pytest.raises(Error, match=r"0 <= (limit < units|stopped < elements)=8.*=8"):
        dropout(x, KEY, 8, 2.0, exact=True)
    with pytest.raises(Error, match=r"key must be int64 of shape \(2,\), got torch.int64 of shape \(3,\)"):
        dropout(x, torch.tensor([1, 2, 3]), 3, 2.0)


def test_the_library_refuses_what_does_not_fit() -> None:
    if LIBRARY is None:
        pytest.skip("there is no native library")
    x = torch.zeros(64)
    at = (x.data_ptr(), x.data_ptr(), None)
    for sizes, limit, options in (
        ((-1, 4, 0), 3, {}),
        ((2**40, 2**40, 0), 3, {}),
        ((2, 4, 3), 3, {}),
        ((1, 8194, 4097), 3, {}),
        ((2, 4, 0), 65536, {}),
        ((2, 4, 0), 5, {"exact": True}),
        ((1, 5000, 0), 5, {"exact": True}),  # no scratch
        ((2, 4, 0), 3, {"dtype": 2}),
    ):
        with pytest.raises(Error, match="native dropout: an argument is out of range"):
            LIBRARY.dropout(sizes, (1, 0, limit), 2.0, at, **options)
    with pytest.raises(Error, match="native dropout: this processor lacks"):
        LIBRARY.dropout((2, 4, 0), (1, 0, 3), 2.0, at, isa="mmx")
    assert (x == 0).all()
