"""Masks: known answers, the definition element by element, and one set of bits from every implementation."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from leanconv import _native
from leanconv.errors import Error
from leanconv.kernels import philox as ph

WIDTHS = (8, 16, 32, 64, 128, 256)  # elements per block, and per vector and batch of vectors of the instruction sets
LENGTHS = sorted({max(1, w + d) for w in WIDTHS for d in (-1, 0, 1)} | {1, 2, 3, 4, 5, 4096, 4097, 8193})
KEYS = st.integers(-(2**63), 2**63 - 1)
OFFSETS = st.sampled_from([0, 1, 2**32 - 2, 2**32, 2**40 + 3])
OPS = {"keep_mask": ph.twin_mask, "keep_exact": ph.twin_exact}


@pytest.fixture(params=["0", "1"], ids=["torch", "native"])
def native(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    if request.param == "1" and not _native.available():
        pytest.skip("there is no native library")
    monkeypatch.setenv("LEANCONV_NATIVE", request.param)
    return str(request.param)


def word(key: int, offset: int, element: int, per_block: int, high: int) -> tuple[int, ...]:
    low, block, key = 0xFFFFFFFF, element // per_block, key % 2**64
    return ph.philox((block & low, block >> 32, offset & low, offset >> 32 | high), (key & low, key >> 32))


def number16(key: int, sample: int, element: int) -> int:
    return word(key, sample, element, 8, 0)[element // 2 % 4] >> 16 * (element % 2) & 0xFFFF


def number32(key: int, sample: int, element: int) -> int:
    return word(key, sample, element, 4, 1 << 31)[element % 4]


@pytest.mark.parametrize(
    ("counter", "key", "answer"),
    [
        ((0, 0, 0, 0), (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
        ((2**32 - 1,) * 4, (2**32 - 1,) * 2, (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
        (
            (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
            (0xA4093822, 0x299F31D0),
            (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
        ),
    ],
)
def test_published_known_answers(counter, key, answer):
    assert ph.philox(counter, key) == answer


def test_known_answer_through_the_mask(native):
    # Key 0, sample 0, block 0 is the zero vector: its words, low half first, cut at each of its own numbers.
    words = (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)
    numbers = [half for w in words for half in (w & 0xFFFF, w >> 16)]
    for limit in numbers:
        mask = ph.keep_mask(torch.tensor([0, 0]), 1, 8, limit)
        assert mask[0].tolist() == [n >= limit for n in numbers]


@settings(deadline=None, max_examples=25)
@given(KEYS, OFFSETS, st.integers(1, 3), st.integers(1, 40), st.integers(0, 65535))
def test_twin_mask_is_the_definition(key, offset, samples, elements, limit):
    mask = ph.twin_mask(torch.tensor([key, offset]), samples, elements, limit, False)
    for row in range(samples):
        numbers = [number16(key, offset + row, e) for e in range(elements)]
        expected = [n >= limit for n in numbers]
        if not any(expected):
            expected[numbers.index(max(numbers))] = True
        assert mask[row].tolist() == expected


@settings(deadline=None, max_examples=25)
@given(KEYS, OFFSETS, st.integers(1, 3), st.integers(1, 40), st.data())
def test_twin_exact_is_the_definition(key, offset, samples, elements, data):
    stopped = data.draw(st.integers(0, elements - 1))
    mask = ph.twin_exact(torch.tensor([key, offset]), samples, elements, stopped, False)
    for row in range(samples):
        numbers = [number32(key, offset + row, e) for e in range(elements)]
        out = set(sorted(range(elements), key=lambda e: (numbers[e], e))[:stopped])
        assert mask[row].tolist() == [e not in out for e in range(elements)]


@settings(deadline=None, max_examples=60)
@given(KEYS, OFFSETS, st.integers(1, 9), st.sampled_from(LENGTHS), st.data())
def test_every_instruction_set_gives_the_bits_of_the_twin(key, offset, samples, elements, data):
    library = _native.load()
    if library is None:
        pytest.skip("there is no native library")
    threshold = data.draw(st.sampled_from([0, 1, 32768, 65000, 65535]))
    for op, limit in (("keep_mask", threshold), ("keep_exact", data.draw(st.integers(0, elements - 1)))):
        expected = OPS[op](torch.tensor([key, offset]), samples, elements, limit, False)
        for isa in library.isas:
            shift = data.draw(st.integers(0, 7))  # misaligned on purpose, and fenced
            room = torch.full((samples * elements + 16,), 7, dtype=torch.uint8)
            out = room[shift : shift + samples * elements]
            getattr(library, op)(key % 2**64, offset, samples, elements, limit, out.data_ptr(), None, isa)
            assert torch.equal(out.view(samples, elements), expected.to(torch.uint8)), isa
            assert (room[:shift] == 7).all(), isa
            assert (room[shift + samples * elements :] == 7).all(), isa


@settings(deadline=None, max_examples=40)
@given(KEYS, st.integers(1, 12), st.sampled_from(LENGTHS[:14]), st.data())
def test_rows_of_a_part_are_the_slice_of_the_whole(key, samples, elements, data):
    start = data.draw(st.integers(0, samples - 1))
    count = data.draw(st.integers(1, samples - start))
    whole, part = torch.tensor([key, 0]), torch.tensor([key, start])
    rows = slice(start, start + count)
    assert torch.equal(ph.keep_mask(part, count, elements, 30000), ph.keep_mask(whole, samples, elements, 30000)[rows])
    stopped = elements // 2
    assert torch.equal(
        ph.keep_exact(part, count, elements, stopped), ph.keep_exact(whole, samples, elements, stopped)[rows]
    )


def test_threads_change_no_bit(native):
    key, before, masks = torch.tensor([77, 5]), torch.get_num_threads(), []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            masks.append((ph.keep_mask(key, 3, 100_003, 20000), ph.keep_exact(key, 30, 5003, 2000)))
    finally:
        torch.set_num_threads(before)
    for mask, exact in masks[1:]:
        assert torch.equal(mask, masks[0][0])
        assert torch.equal(exact, masks[0][1])


def test_the_batch_mask_ignores_samples_and_offset(native):
    one = ph.keep_mask(torch.tensor([9, 0]), 1, 50, 30000)
    assert torch.equal(ph.keep_mask(torch.tensor([9, 64]), 32, 50, 30000, batch=True), one)
    exact = ph.keep_exact(torch.tensor([9, 64]), 32, 50, 20, batch=True)
    assert exact.shape == (1, 50)
    assert torch.equal(exact, ph.keep_exact(torch.tensor([9, 0]), 1, 50, 20))


@pytest.mark.source("S2")
def test_never_are_all_stopped(native):
    key = torch.tensor([3, 0])
    mask = ph.keep_mask(key, 500, 3, 65535)
    assert mask.any(1).all()
    assert mask.sum() < 510  # and hardly more: the threshold stops all but one number in 65536
    for row in (0, 1, 2, 499):
        numbers = [number16(3, row, e) for e in range(3)]
        assert bool(mask[row, numbers.index(max(numbers))])
    assert ph.keep_mask(key, 4, 1, 65535).all()


@pytest.mark.source("S2")
def test_exact_counts(native):
    key = torch.tensor([3, 0])
    for elements, stopped in ((1, 0), (7, 6), (64, 32), (5000, 1), (5000, 4999)):
        assert (~ph.keep_exact(key, 9, elements, stopped)).sum(1).eq(stopped).all()


def test_frequencies(native):
    """The share kept is 1 - threshold / 65536 within 5 deviations, over all elements and for each of the first ones."""
    key, limit, rows = torch.tensor([2024, 0]), ph.threshold(0.3), 20_000
    share = 1 - limit / 65536
    mask = ph.keep_mask(key, rows, 24, limit).double()
    deviation = (share * (1 - share)) ** 0.5
    assert abs(mask.mean() - share) < 5 * deviation / mask.numel() ** 0.5
    assert ((mask.mean(0) - share).abs() < 5 * deviation / rows**0.5).all()
    neighbours = torch.corrcoef(mask.T) - torch.eye(24)
    assert neighbours.abs().max() < 5 / rows**0.5
    exact = ph.keep_exact(key, rows, 24, 6).double().mean(0)
    assert ((exact - 0.75).abs() < 5 * (0.75 * 0.25 / rows) ** 0.5).all()


def test_empty_masks(native):
    key = torch.tensor([1, 0])
    assert ph.keep_mask(key, 0, 8, 3).shape == (0, 8)
    assert ph.keep_mask(key, 3, 0, 3).shape == (3, 0)
    assert ph.keep_exact(key, 0, 8, 3).shape == (0, 8)


def test_threshold_and_scale():
    assert [ph.threshold(p) for p in (0.0, 0.5, 0.1, 1 - 2**-53)] == [0, 32768, 6554, 65535]
    assert ph.scale(0) == 1.0
    assert ph.scale(32768) == 2.0
    assert ph.scale(6554) == 65536 / 58982  # not 1 / 0.9: the mask realises this
    with pytest.raises(Error, match=r"^threshold: p must satisfy 0 <= p < 1, got p=1\.5$"):
        ph.threshold(1.5)
    with pytest.raises(Error, match="got p=nan"):
        ph.threshold(float("nan"))


def test_bad_arguments(native):
    key = torch.tensor([1, 0])
    with pytest.raises(Error, match="0 <= threshold <= 65535, got threshold=65536"):
        ph.keep_mask(key, 1, 8, 65536)
    with pytest.raises(Error, match="0 <= stopped < elements=8, got stopped=8"):
        ph.keep_exact(key, 1, 8, 8)
    with pytest.raises(Error, match=r"key must be int64 of shape \(2,\), got torch.float32 of shape \(3,\)"):
        ph.keep_mask(torch.zeros(3), 1, 8, 5)


def drop(x: torch.Tensor, limit: int) -> torch.Tensor:
    key = ph.dropout_key(x.shape[0])
    mask = ph.keep_mask(key, x.shape[0], x.shape[1], limit)
    exact = ph.keep_exact(key, x.shape[0], x.shape[1], 3, batch=True)
    return x * mask * exact * ph.scale(limit)


@pytest.mark.parametrize("dynamic", [False, True])
def test_compiled_in_one_graph(native, dynamic):
    compiled = torch.compile(drop, fullgraph=True, dynamic=dynamic, backend="aot_eager")
    for rows in (4, 6):
        x = torch.ones(rows, 37)
        torch.manual_seed(5)
        expected = drop(x, 30000)
        torch.manual_seed(5)
        assert torch.equal(compiled(x, 30000), expected)
        assert not torch.equal(compiled(x, 30000), expected)  # a fresh key with each call


def test_inference_mode_autocast_and_gradients(native):
    x = torch.ones(4, 37, requires_grad=True)
    torch.manual_seed(1)
    y = drop(x, 30000)
    y.sum().backward()
    assert torch.equal(x.grad, y.detach())
    torch.manual_seed(1)
    with torch.inference_mode(), torch.autocast("cpu"):
        assert torch.equal(drop(torch.ones(4, 37), 30000), y.detach())


@pytest.mark.parametrize("op", ["keep_mask", "keep_exact"])
def test_operations_keep_torchs_rules(native, op):
    torch.library.opcheck(getattr(torch.ops.leanconv, op).default, (torch.tensor([5, 0]), 3, 20, 7, False))
