"""Keys: where they come from, what keyed() holds still, and that recomputation finds the same ones again."""

from __future__ import annotations

import threading

import pytest
import torch
from torch.utils.checkpoint import checkpoint

from leanconv.errors import Error
from leanconv.kernels import keys
from leanconv.kernels.philox import dropout_key, keep_mask, keyed, mix


def test_the_hash_is_as_documented():
    # SplitMix64's published first outputs for seed 0 are the finalised multiples of the golden gamma.
    golden = 0x9E3779B97F4A7C15
    assert keys._splitmix(0) == 0xE220A8397B1DCDAF
    assert keys._splitmix(golden) == 0x6E789E6AA1B965F4
    assert mix(0, 0) == keys._splitmix(0xE220A8397B1DCDAF)
    assert mix(3, 7) == keys._splitmix(keys._splitmix(3) ^ 7)
    assert mix(-1, 0) == mix(2**64 - 1, 0)
    assert len({mix(seed, step) for seed in range(40) for step in range(40)}) == 1600


def test_a_key_is_one_draw_of_the_users_generator():
    torch.manual_seed(4)
    first, second = dropout_key(8), dropout_key(8)
    torch.manual_seed(4)
    draws = torch.empty(2, dtype=torch.int64).random_(-(2**63), None)
    assert [first[0], second[0]] == [*draws]
    assert first.dtype == torch.int64
    assert first[1] == 0
    assert torch.Tag.nondeterministic_seeded in torch.ops.leanconv.dropout_key.default.tags


def test_keyed_repeats_and_restores():
    before = torch.get_rng_state()
    with keyed(1, 2):
        a = [dropout_key(4).tolist() for _ in range(3)]
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(99)
    with keyed(1, 2, offset=16):
        b = [dropout_key(4).tolist() for _ in range(3)]
    assert [k for k, _ in a] == [k for k, _ in b]
    assert len({k for k, _ in a}) == 3
    assert [o for _, o in a + b] == [0] * 3 + [16] * 3
    with keyed(1, 3):
        assert dropout_key(4)[0] != a[0][0]
    with keyed(2, 2):
        assert dropout_key(4)[0] != a[0][0]


def test_keyed_restores_on_an_exception():
    before = torch.get_rng_state()
    with pytest.raises(RuntimeError, match="on purpose"), keyed(1, 2, offset=5):
        raise RuntimeError("on purpose")
    assert torch.equal(torch.get_rng_state(), before)
    assert dropout_key(4)[1] == 0


def test_the_inner_context_counts_and_the_outer_goes_on():
    with keyed(1, 1, offset=3):
        expected = [dropout_key(1).tolist() for _ in range(2)]
    with keyed(1, 1, offset=3):
        first = dropout_key(1).tolist()
        with keyed(9, 9, offset=7):
            inner = dropout_key(1).tolist()
        second = dropout_key(1).tolist()
    assert [first, second] == expected
    assert inner[1] == 7
    with keyed(9, 9, offset=7):
        assert dropout_key(1).tolist() == inner


def test_seeds_with_equal_low_halves_give_other_keys():
    torch.manual_seed(1)
    a = torch.rand(3)
    torch.manual_seed(1 + 2**32)
    assert torch.equal(a, torch.rand(3))  # why keys are combined with the whole hash
    found = []
    for salt in (5, 5 + 2**32):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(keys, "mix", lambda seed, step, salt=salt: salt)
            with keyed(0, 0):
                found.append(int(dropout_key(1)[0]))
    assert found[0] != found[1]


@pytest.mark.source("S4")
def test_micro_batches_draw_the_slices_of_the_whole_batch():
    with keyed(7, 11):
        whole = [keep_mask(dropout_key(12), 12, 40, 30000) for _ in range(2)]
    for offset, rows in ((0, 5), (5, 4), (9, 3)):
        with keyed(7, 11, offset):
            for mask in whole:
                assert torch.equal(keep_mask(dropout_key(rows), rows, 40, 30000), mask[offset : offset + rows])


def test_the_rank_shifts_the_samples_where_no_context_says_otherwise(monkeypatch):
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.distributed, "get_rank", lambda: 3)
    assert dropout_key(8)[1] == 24
    with keyed(0, 0):
        assert dropout_key(8)[1] == 0


class Drop(torch.autograd.Function):
    """Notes the keys that a forward sees, so that the recomputed ones can be compared."""

    @staticmethod
    def forward(ctx, x, seen):
        key = dropout_key(x.shape[0])
        seen.append(key.tolist())
        mask = keep_mask(key, x.shape[0], x.shape[1], 30000)
        ctx.save_for_backward(mask)
        return x * mask

    @staticmethod
    def backward(ctx, gradient):
        return gradient * ctx.saved_tensors[0], None


def checkpointed(reentrant: bool) -> tuple[torch.Tensor, torch.Tensor, list[list[int]]]:
    seen: list[list[int]] = []
    x = torch.ones(4, 30, requires_grad=True)
    y = checkpoint(lambda t: Drop.apply(t * t, seen), x, use_reentrant=reentrant)
    return x, y, seen


@pytest.mark.parametrize("reentrant", [False, True])
def test_checkpointing_inside_the_context(reentrant):
    with keyed(3, 4, offset=8):
        dropout_key(4)
        x, y, seen = checkpointed(reentrant)
        after = torch.get_rng_state()
        y.sum().backward()
        assert torch.equal(torch.get_rng_state(), after)
    assert len(seen) == 2
    assert seen[0] == seen[1]
    assert seen[0][1] == 8
    assert torch.equal(x.grad, 2 * y.detach())


@pytest.mark.parametrize("reentrant", [False, True])
def test_checkpointing_with_backward_after_the_context(reentrant):
    with keyed(2903, 5, offset=8):
        x, y, seen = checkpointed(reentrant)
    y.sum().backward()
    assert seen[0] == seen[1]
    assert torch.equal(x.grad, 2 * y.detach())


@pytest.mark.parametrize("reentrant", [False, True])
def test_checkpointing_without_a_context(reentrant):
    torch.manual_seed(0)
    x, y, seen = checkpointed(reentrant)
    dropout_key(1)
    y.sum().backward()
    assert seen[0] == seen[1]
    assert torch.equal(x.grad, 2 * y.detach())


def test_an_ambiguous_recomputation_is_an_error():
    outputs = []
    for offset in (0, 4):
        with keyed(3, 6, offset):
            outputs.append(checkpointed(False)[1])
    with pytest.raises(Error, match="must run inside the same keyed"):
        outputs[0].sum().backward()


def test_backward_in_another_thread_sees_the_context():
    with keyed(3, 7, offset=2):
        x, y, seen = checkpointed(False)
        thread = threading.Thread(target=lambda: y.sum().backward())
        thread.start()
        thread.join()
    assert seen[0] == seen[1]
    assert torch.equal(x.grad, 2 * y.detach())


def test_a_second_thread_may_not_enter():
    errors = []

    def enter() -> None:
        try:
            with keyed(0, 0):
                pass
        except Error as error:
            errors.append(str(error))

    with keyed(0, 0):
        thread = threading.Thread(target=enter)
        thread.start()
        thread.join()
    assert errors
    assert errors[0].startswith("keyed: one thread at a time")
    thread = threading.Thread(target=enter)  # and afterwards it may
    thread.start()
    thread.join()
    assert len(errors) == 1


def test_the_memory_of_draws_is_bounded(monkeypatch):
    monkeypatch.setattr(keys, "_REMEMBERED", 10)
    monkeypatch.setattr(keys._state, "drawn", {})
    with keyed(8, 8):
        for _ in range(25):
            dropout_key(1)
    assert len(keys._state.drawn) == 10


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((1.5, 0, 0), "keyed: seed must be an int, got seed=1.5"),
        ((0, -1, 0), "keyed: step must be at least 0, got step=-1"),
        ((0, 0, -2), "keyed: offset must be at least 0, got offset=-2"),
        ((0, True, 0), "keyed: step must be an int, got step=True"),
    ],
)
def test_bad_arguments(arguments, message):
    with pytest.raises(Error) as caught, keyed(*arguments):
        pass
    assert str(caught.value) == message


def test_compiled_code_reads_the_context_when_it_runs():
    compiled = torch.compile(lambda x: x + dropout_key(x.shape[0]), fullgraph=True, backend="aot_eager")
    x = torch.zeros(2, dtype=torch.int64)
    with keyed(1, 1, offset=4):
        a = compiled(x)
    with keyed(1, 1, offset=6):
        b = compiled(x)
    assert a[0] == b[0]
    assert (a[1], b[1]) == (4, 6)
