"""The arena: no two tensors share memory, what is gone is used again, what is held stays bounded."""

from __future__ import annotations

import subprocess
import sys
import threading

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from leanconv import _native, allocator
from leanconv.kernels import arena
from leanconv.kernels.separable import BlockInputs, Norm, separable_chain

SEGMENT = 1 << 16
TUNED = """
import torch
from leanconv import allocator
from leanconv.kernels import arena
assert allocator.gives_back()
arena.empty((1 << 20,), torch.float32)
assert arena._arena.held > 0
assert allocator.tune_allocator().tuned
assert not allocator.gives_back()
assert arena._arena.held == 0
"""


@pytest.fixture
def untuned(monkeypatch):
    """As in a process of glibc whose allocator nobody has tuned."""
    monkeypatch.setattr(allocator, "gives_back", lambda: True)


def small() -> arena.Arena:
    return arena.Arena(SEGMENT)


@settings(max_examples=100, deadline=None)
@given(st.lists(st.tuples(st.integers(1, 3 * SEGMENT // 4), st.integers(0, 9)), max_size=60))
def test_living_tensors_keep_their_values_and_memory_stays_bounded(steps):
    own, living, most = small(), [], 0
    for number, (count, gone) in enumerate(steps):
        living.append((own.take(count, torch.uint8).fill_(number % 251), number % 251))
        used = own.held - own.free
        most = max(most, used)
        assert used == sum(-(-t.numel() // 4096) * 4096 for t, _ in living)
        assert own.held <= 1.25 * most + len(living) * SEGMENT
        assert all(bool((t == value).all()) for t, value in living)
        if gone < len(living):
            del living[gone]
    living.clear()
    assert own.free == own.held
    own.release()
    assert own.held == 0


def test_a_freed_block_is_the_next_of_its_size():
    own = small()
    first, second = own.take(5000, torch.float32), own.take(100, torch.float32)
    at = first.data_ptr()
    del first
    assert own.take(5000, torch.float32).data_ptr() == at
    assert second.data_ptr() % 4096 == 0


def test_neighbours_become_one_block():
    own = small()
    parts = [own.take(SEGMENT // 4, torch.uint8) for _ in range(4)]
    at, held = parts[0].data_ptr(), own.held
    for i in (0, 2, 1, 3):  # joined on both sides
        parts[i] = None
    whole = own.take(SEGMENT, torch.uint8)
    assert (whole.data_ptr(), own.held) == (at, held)


def test_a_view_keeps_its_block():
    own = small()
    view = own.take(SEGMENT, torch.uint8).fill_(7)[100:200]
    other = own.take(SEGMENT, torch.uint8).fill_(9)
    assert bool((view == 7).all())
    assert bool((other == 9).all())


def test_what_no_longer_fits_is_given_back():
    own = small()
    for count in range(SEGMENT, 20 * SEGMENT, SEGMENT // 2):  # each larger than all before
        own.take(count, torch.uint8)
        assert own.held <= 1.25 * count + SEGMENT


def test_tensors_may_go_in_other_threads():
    own, errors = small(), []

    def work(value: int) -> None:
        for i in range(200):
            t = own.take(1 + 37 * i, torch.uint8).fill_(value)
            if not bool((t == value).all()):
                errors.append(value)

    threads = [threading.Thread(target=work, args=(value,)) for value in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors
    assert own.free == own.held


@pytest.mark.parametrize("shape", [(2, 3, 4, 5), (8, 64, 16, 16), (70000,), (300, 300), (0, 3, 4, 4), (1, 1, 512, 512)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.uint8])
def test_shapes_lie_as_torchs(untuned, shape, dtype):
    last = torch.channels_last if len(shape) == 4 else torch.contiguous_format
    wanted = torch.empty(*shape, dtype=dtype, memory_format=last)
    found = arena.empty(shape, dtype)
    assert (found.shape, found.dtype) == (wanted.shape, dtype)
    assert found.is_contiguous(memory_format=last)
    assert arena.empty_like(found).shape == wanted.shape


@pytest.mark.skipif(_native.load() is None, reason="needs native code")
def test_a_chain_gives_the_same_bits_with_and_without(untuned, monkeypatch):
    found = []
    monkeypatch.setattr(arena, "_arena", small())
    for smallest in (1, sys.maxsize):
        monkeypatch.setattr(arena, "SMALLEST", smallest)
        for lean in (False, True):
            torch.manual_seed(0)
            x = torch.randn(4, 32, 24, 24).to(memory_format=torch.channels_last).requires_grad_()
            weights = [torch.randn(s).requires_grad_() for s in ((32, 1, 3, 3), (64, 32, 1, 1))]
            more = [torch.randn(s).requires_grad_() for s in ((64, 1, 3, 3), (48, 64, 1, 1))]
            relu = Norm(act="relu")
            blocks = [BlockInputs(*pair, relu, relu, padding=1) for pair in (weights, more)]
            for _ in range(2):  # the second time in used memory
                y, _moments = separable_chain(x, blocks, lean)
                grads = torch.autograd.grad(y.square().sum(), [x, *weights, *more])
            found.append((y, *grads))
    assert arena._arena.held > 0
    for others in found[1:]:
        assert all(torch.equal(a, b) for a, b in zip(found[0], others, strict=True))


def test_a_told_allocator_needs_no_arena(monkeypatch):
    monkeypatch.setattr(allocator, "_told", [True])
    monkeypatch.setattr(arena, "_arena", small())
    assert arena.empty((100000,), torch.float32).numel() == 100000
    assert arena._arena.held == 0
    assert not allocator.gives_back()


def test_the_allocator_counts_it_and_gives_it_back(monkeypatch):
    own = small()
    monkeypatch.setattr(allocator, "keepers", [own])
    before = allocator.resident_cost().kept
    own.take(100 * SEGMENT, torch.uint8)
    after = allocator.resident_cost().kept
    assert before is None or after - before >= 90 * SEGMENT
    assert allocator.release_memory()
    assert own.held == 0


@pytest.mark.skipif(not allocator.gives_back(), reason="malloc is not glibc's, or it was told what to keep")
def test_tuning_gives_back_what_it_holds():
    subprocess.run([sys.executable, "-c", TUNED], check=True)
