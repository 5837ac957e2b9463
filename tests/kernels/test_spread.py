"""Rows and columns spread out between zeros and gathered, against torch's own."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from leanconv import _native
from leanconv.errors import Error
from leanconv.kernels.spread import gather_columns, spread, spread_reference

LIBRARY = _native.load()


@pytest.fixture(params=["0", *(LIBRARY.isas if LIBRARY else ())])
def way(request, monkeypatch):
    """torch's path, then every instruction set."""
    monkeypatch.setenv("LEANCONV_NATIVE" if request.param == "0" else "LEANCONV_ISA", request.param)
    return request.param


def some(size: int, count: int, seed: int = 0) -> torch.Tensor:
    return torch.randperm(size, generator=torch.Generator().manual_seed(seed))[:count].sort().values


def by_loops(part: torch.Tensor, index: torch.Tensor, dim: int, size: int) -> torch.Tensor:
    shape = [size, part.shape[1]] if dim == 0 else [part.shape[0], size]
    full = torch.zeros(shape, dtype=part.dtype)
    for at, where in enumerate(index.tolist()):
        full.select(dim, where).copy_(part.select(dim, at))
    return full


def test_sizes_around_the_vector(way):
    for size in (1, 2, 7, 8, 9, 15, 16, 17, 31, 32, 33, 64, 100):
        for count in {0, 1, size // 2, size}:
            for dim in (0, 1):
                part = torch.randn((count, 5) if dim == 0 else (5, count))
                index = some(size, count)
                assert torch.equal(spread(part, index, dim, size), by_loops(part, index, dim, size))


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 70), st.integers(1, 300), st.integers(0, 1), st.integers(0, 999), st.data())
def test_every_entry_and_threads(rows, columns, dim, seed, data):
    size = (rows, columns)[dim]
    count = data.draw(st.integers(0, size))
    index, before = some(size, count, seed), torch.get_num_threads()
    part = torch.randn((count, columns) if dim == 0 else (rows, count))
    try:
        for threads in (1, 2):
            torch.set_num_threads(threads)
            assert torch.equal(spread(part, index, dim, size), by_loops(part, index, dim, size))
    finally:
        torch.set_num_threads(before)


def test_columns_are_gathered(way):
    before = torch.get_num_threads()
    try:
        for size in (1, 2, 15, 16, 17, 31, 33, 64, 100, 1000):
            for count in {0, 1, size // 2, size - 1, size}:
                for rows in (0, 1, 5, 300):
                    torch.set_num_threads(1 + rows % 3)
                    full, index = torch.randn(rows, size), some(size, count)
                    assert torch.equal(gather_columns(full, index), full.index_select(1, index))
    finally:
        torch.set_num_threads(before)
    for full in (torch.randn(3, 8)[:, :5], torch.randn(5, 3).t(), torch.randn(3, 5).double(), torch.randn(3, 5, 2)):
        assert torch.equal(gather_columns(full, some(5, 2)), full.index_select(1, some(5, 2)))


def test_parts_may_have_room_behind_their_rows(way):
    index = some(100, 43)
    for dim, part in ((0, torch.randn(43, 64)[:, :51]), (1, torch.randn(51, 64)[:, :43])):
        assert torch.equal(spread(part, index, dim, 100), by_loops(part, index, dim, 100))


def test_parts_of_large_matrices_meet(way):
    index, before = some(1000, 490), torch.get_num_threads()
    try:
        torch.set_num_threads(3)
        for dim, part in ((0, torch.randn(490, 300)), (1, torch.randn(300, 490))):
            assert torch.equal(spread(part, index, dim, 1000), spread_reference(part, index, dim, 1000))
    finally:
        torch.set_num_threads(before)


def test_other_tensors_are_torchs(way):
    index = some(9, 4)
    for part in (torch.randn(4, 3, dtype=torch.float64), torch.randn(3, 4).t(), torch.randn(4, 3, 2), torch.randn(4)):
        want = part.new_zeros(9, *part.shape[1:])
        want[index] = part
        assert torch.equal(spread(part, index, 0, 9), want)


def test_the_library_refuses_what_does_not_fit():
    if LIBRARY is None:
        pytest.skip("there is no native library")
    keep, full, part = torch.tensor([1, 0, 1], dtype=torch.uint8), torch.zeros(2, 3), torch.ones(2, 2)
    at = (keep.data_ptr(), full.data_ptr(), part.data_ptr())
    for sizes in ((2, 3, 1, 1), (-1, 3, 2, 2), (2, 2, 2, 2), (2, 3, 2, 1), (2, 3, 2, 2**60)):
        with pytest.raises(Error, match="native spread: an argument is out of range"):
            LIBRARY.spread(False, sizes, at)
    keep[1] = 2
    with pytest.raises(Error, match="out of range"):
        LIBRARY.spread(False, (2, 3, 4, 4), at)
    with pytest.raises(Error, match="lacks the instruction set"):
        LIBRARY.spread(False, (2, 3, 2, 2), at, isa="mmx")
    assert (full == 0).all()
