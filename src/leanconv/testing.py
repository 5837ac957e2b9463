"""The common checks: what every technique must hold, ours and yours.

In a test file of your own technique::

    from leanconv.testing import parametrize_with_checks
    import mytechnique

    @parametrize_with_checks([mytechnique])
    def test_contract(check):
        check()

Each check builds its networks itself, runs in well under a second and raises AssertionError with a sentence.
"""

from __future__ import annotations

import copy
import dataclasses
import functools
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from leanconv import techniques as _techniques
from leanconv.accounting import layer_cost
from leanconv.contract import Attachment, Context, Edit, Refusal, Technique
from leanconv.errors import Error
from leanconv.graph import evaluating, record
from leanconv.rewrite import rewrite

__all__ = ["checks", "context", "failures", "parametrize_with_checks"]

Check = Callable[[], None]
VERBS = ("apply", "remove", "fold", "check", "roles")


def checks(technique: Technique) -> dict[str, Check]:
    """Every check as a function without arguments, by name."""
    return {f.__name__.removeprefix("_check_"): functools.partial(f, technique) for f in _ALL}


def failures(technique: Technique) -> dict[str, str]:
    """Run every check; name -> what failed. Empty where the technique holds the contract."""
    found = {}
    for name, check in checks(technique).items():
        try:
            check()
        except Exception as error:  # a technique may raise anything; that is the finding
            found[name] = f"{type(error).__name__}: {error}"
    return found


def parametrize_with_checks(techniques: Iterable[Technique]) -> Any:
    """A pytest decorator: one test per technique and check, with ids such as ``dropout-fold_keeps_eval_outputs``."""
    import pytest

    cases = [(f"{t.NAME}-{name}", check) for t in techniques for name, check in checks(t).items()]
    return pytest.mark.parametrize("check", [check for _, check in cases], ids=[name for name, _ in cases])


# --- the networks and what a verb gets to see ------------------------------------------------------------------------


class _Twisted(nn.Module):
    """What real networks do to surgery: a layer called twice, a skip connection, functional and in-place operations."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 16, 3, padding=1)
        self.norm = nn.BatchNorm2d(16)
        self.twice = nn.Conv2d(16, 16, 3, padding=1, bias=False)
        self.act = nn.ReLU(inplace=True)
        self.head = nn.Linear(16, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.act(self.norm(self.stem(x)))
        y = self.norm(self.twice(x)) + x
        y = nn.functional.relu(self.twice(y))
        return self.head(y.mean((2, 3)))  # type: ignore[no-any-return]


def _plain() -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        return nn.Sequential(
            nn.Conv2d(3, 16, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(16, 24, 3, stride=2, padding=1),
            nn.ReLU(),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
            nn.Linear(24, 32),
            nn.ReLU(),
            nn.Linear(32, 5),
        )


def _twisted() -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(4)
        return _Twisted()


def _inputs(count: int = 3, dtype: torch.dtype = torch.float32) -> list[Tensor]:
    generator = torch.Generator().manual_seed(5)
    return [torch.randn(6, 3, 8, 8, generator=generator, dtype=torch.float64).to(dtype) for _ in range(count)]


def context(model: nn.Module, **changes: Any) -> Context:
    """A full context for the small networks of the checks: graph, batches, optimizer, roles, 100 samples."""
    dtype = next(model.parameters()).dtype
    batches = _inputs(dtype=dtype)
    roles = _techniques.roles(model)
    full = Context(
        model=model,
        graph=record(model, batches[0]),
        batches=batches,
        optimizer=_optimizer(model, roles),
        probe=batches[0],
        roles=roles,
        samples=100,
    )
    return dataclasses.replace(full, **changes)


def _optimizer(model: nn.Module, roles: dict[str, str]) -> torch.optim.Optimizer:
    groups = []
    for role in sorted(set(roles.values())):
        named = [(n, p) for n, p in model.named_parameters() if roles[n] == role]
        groups.append(
            {"params": [p for _, p in named], "names": [n for n, _ in named], "role": role, "weight_decay": 0.0}
        )
    return torch.optim.SGD(groups, lr=0.1)


def _options(t: Technique, init: str | None = None) -> Any:
    fields = {f.name for f in dataclasses.fields(t.Options)}
    return t.Options(init=init) if init and "init" in fields else t.Options()


def _applied(t: Technique, model: nn.Module, init: str | None = None) -> nn.Module:
    return rewrite(model, t.apply(context(model), _options(t, init))).model


def _trained(model: nn.Module) -> nn.Module:
    """A float64 copy with parameters and statistics away from where they start, in eval mode."""
    model = copy.deepcopy(model).double().train()
    generator = torch.Generator().manual_seed(6)
    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        for p in model.parameters():
            p.add_(0.1 * torch.randn(p.shape, generator=generator, dtype=p.dtype))
        for x in _inputs(dtype=torch.float64):
            model(x)
    return model.eval()


def _run(model: nn.Module, x: Tensor) -> Tensor:
    with evaluating(model):
        y: Tensor = model(x)
        return y


def _state(model: nn.Module) -> tuple[Any, ...]:
    modules = [
        (n, id(m), m.training, repr(m), len(m._forward_hooks), len(m._forward_pre_hooks))
        for n, m in model.named_modules()
    ]
    flags = [p.requires_grad for p in model.parameters()]
    return modules, flags, {k: v.clone() for k, v in model.state_dict().items()}, torch.get_rng_state()


def _assert_same(before: tuple[Any, ...], after: tuple[Any, ...], what: str) -> None:
    assert before[0] == after[0], f"{what} changes modules, training flags or hooks of the network"
    assert before[1] == after[1], f"{what} changes requires_grad"
    assert before[2].keys() == after[2].keys(), f"{what} changes the keys of the state_dict"
    changed = [k for k in before[2] if not torch.equal(before[2][k], after[2][k])]
    assert not changed, f"{what} changes {changed}"
    assert torch.equal(before[3], after[3]), f"{what} draws from the user's random generator"


# --- the checks ------------------------------------------------------------------------------------------------------


def _check_has_the_contracts_names(t: Technique) -> None:
    assert isinstance(t, Technique), "a name of the contract is missing"
    assert isinstance(t.NAME, str), f"NAME must be a string, got {t.NAME!r}"
    assert isinstance(t.ORDER, int), f"ORDER must be an integer, got {t.ORDER!r}"
    assert t.PAPER.startswith("http"), f"PAPER must be an address, got {t.PAPER!r}"
    assert all(issubclass(layer, nn.Module) for layer in t.LAYERS), "LAYERS must be module classes"


def _check_options_have_defaults_and_are_frozen(t: Technique) -> None:
    options = t.Options()
    assert t.Options(**dataclasses.asdict(options)) == options, "Options must be rebuilt from their own values"
    try:
        setattr(options, dataclasses.fields(options)[0].name, 1)
    except dataclasses.FrozenInstanceError:
        return
    raise AssertionError("Options must be a frozen dataclass")


def _check_a_bad_option_is_named_and_echoed(t: Technique) -> None:
    name = dataclasses.fields(t.Options)[-1].name
    sentence = None
    try:
        t.Options(**{name: -3})
    except Error as error:
        sentence = str(error)
    assert sentence is not None, f"Options({name}=-3) must raise leanconv.Error"
    assert sentence.startswith(f"{t.NAME}: {name} "), f"the sentence must begin '{t.NAME}: {name} ', got {sentence!r}"
    assert f"got {name}=-3" in sentence, f"the sentence must say 'got {name}=-3', got {sentence!r}"


def _check_verbs_leave_the_network_untouched(t: Technique) -> None:
    for make in (_plain, _twisted):
        for start in (make(), _applied(t, make(), "fresh")):
            model = start.train()
            ctx = context(model)
            before = _state(model)
            for verb in VERBS:
                if verb == "roles":
                    t.roles(model)
                elif verb == "apply":
                    t.apply(ctx, _options(t))
                elif verb == "check":
                    list(t.check(ctx))
                else:
                    getattr(t, verb)(ctx)
                _assert_same(before, _state(model), f"{t.NAME}.{verb}")


def _check_has_some_effect(t: Technique) -> None:
    ctx = context(_plain())
    edits = [p for p in t.apply(ctx, _options(t, "fresh")) if isinstance(p, Edit)]
    attachment = t.attach(ctx, _options(t))
    if attachment is not None:
        attachment.close()
    assert edits or attachment is not None, "neither apply nor attach does anything to a plain network"


def _check_apply_twice_is_apply_once(t: Technique) -> None:
    for make in (_plain, _twisted):
        once = _applied(t, make(), "fresh")
        again = [p for p in t.apply(context(once), _options(t, "fresh")) if isinstance(p, Edit)]
        assert not again, f"applied twice it proposes {[tuple(e.put) for e in again]}"


def _check_apply_is_deterministic(t: Technique) -> None:
    first, second = (_applied(t, _plain(), "fresh").state_dict() for _ in range(2))
    assert first.keys() == second.keys(), "two calls give other state_dict keys"
    assert all(torch.equal(first[k], second[k]) for k in first), "two calls with one seed give other weights"


def _check_proposals_say_why(t: Technique) -> None:
    for proposal in _proposals(t):
        assert proposal.why.strip(), f"a proposal must say why, got {proposal.why!r}"
        if isinstance(proposal, Edit):
            assert proposal.claim in ("exact", "approximate", "changes"), f"unknown claim {proposal.claim!r}"
            assert proposal.put, "an edit must put something"


def _proposals(t: Technique) -> Iterator[Edit | Refusal]:
    for make in (_plain, _twisted):
        yield from t.apply(context(make()), _options(t))
        applied = context(_applied(t, make(), "fresh"))
        yield from t.remove(applied)
        yield from t.fold(applied)


def _check_verbs_do_without_a_graph(t: Technique) -> None:
    ctx = context(_applied(t, _plain(), "fresh"), graph=None, batches=None, probe=None, optimizer=None)
    for proposal in [*t.apply(ctx, _options(t)), *t.remove(ctx), *t.fold(ctx)]:
        assert isinstance(proposal, Edit | Refusal), f"a verb proposes edits or refusals, got {proposal!r}"
    list(t.check(ctx))


def _check_remove_leaves_no_layer(t: Technique) -> None:
    applied = _applied(t, _plain(), "fresh")
    removed = rewrite(applied, t.remove(context(applied))).model
    left = [n for n, m in removed.named_modules() if t.LAYERS and isinstance(m, t.LAYERS)]
    assert not left, f"remove leaves {left}"
    _run(removed, _inputs()[0])


def _check_new_modules_take_the_training_mode(t: Technique) -> None:
    for flag in (True, False):
        applied = _applied(t, _plain().train(flag), "fresh")
        other = [n for n, m in applied.named_modules() if m.training != flag]
        assert not other, f"after apply to a network with training={flag}, {other} stand otherwise"


def _check_fold_keeps_eval_outputs(t: Technique) -> None:
    for make in (_plain, _twisted):
        model = _trained(_applied(t, make(), "fresh"))
        x = _inputs(1, torch.float64)[0]
        folded = rewrite(model, t.fold(context(model))).model
        want, got = _run(model, x), _run(folded, x)
        worst = ((got - want).abs().max() / want.abs().max()).item()
        assert worst <= 1e-10, f"fold changes eval outputs by {worst:.1e} relative in float64"


def _check_exact_edits_keep_eval_outputs(t: Technique) -> None:
    for make in (_plain, _twisted):
        model = _trained(make())
        for verb in (lambda ctx: t.apply(ctx, _options(t, "keep")), t.remove, t.fold):
            exact = [p for p in verb(context(model)) if isinstance(p, Edit) and p.claim == "exact"]
            x = _inputs(1, torch.float64)[0]
            want, got = _run(model, x), _run(rewrite(model, exact).model, x)
            worst = ((got - want).abs().max() / want.abs().max()).item()
            assert worst <= 1e-10, f"an edit that claims to be exact changes eval outputs by {worst:.1e} in float64"


def _check_keys_are_pure_renames(t: Technique) -> None:
    for make in (_plain, _twisted):
        model = _trained(make())
        result = rewrite(model, t.apply(context(model), _options(t, "fresh")))
        old, new = model.state_dict(), result.model.state_dict()
        for edit in result.edits:
            for name, source in edit.keys.items():
                assert name in new, f"the key map names {name!r}, which the new network does not have"
                assert torch.equal(new[name], old[source]), f"{source!r} -> {name!r} is no pure rename: values differ"


def _check_apply_passes_its_own_checks(t: Technique) -> None:
    model = _applied(t, _plain(), "fresh")
    errors = [f.message for f in t.check(context(model)) if f.severity == "error"]
    assert not errors, f"what apply builds, check calls an error: {errors}"


def _check_cost_equals_the_count(t: Technique) -> None:
    model = _applied(t, _plain(), "fresh")
    shapes: dict[str, tuple[int, ...]] = {}
    for path, module in model.named_modules():
        if t.LAYERS and isinstance(module, t.LAYERS):
            module.register_forward_pre_hook(lambda m, args, p=path: shapes.__setitem__(p, tuple(args[0].shape)))
    _run(model, _inputs()[0])
    model = _applied(t, _plain(), "fresh")
    for path, shape in shapes.items():
        layer = model.get_submodule(path)
        predicted, counted = t.cost(layer, shape), layer_cost(layer, shape)
        assert predicted == counted, f"{path}: cost says {predicted}, the execution {counted}"


def _check_roles_name_real_parameters(t: Technique) -> None:
    for make in (_plain, _twisted):
        model = _applied(t, make(), "fresh")
        unknown = set(t.roles(model)) - {n for n, _ in model.named_parameters()}
        assert not unknown, f"roles names {sorted(unknown)}, which are no parameters"
        _techniques.roles(model)


def _check_attachment_leaves_no_trace(t: Technique) -> None:
    model = _applied(t, _plain(), "fresh")
    ctx = context(model)
    assert ctx.optimizer is not None
    groups = [{k: v for k, v in g.items() if k != "params"} for g in ctx.optimizer.param_groups]
    before = _state(model)
    attachment = t.attach(ctx, _options(t))
    if attachment is None:
        return
    assert isinstance(attachment, Attachment), f"attach must return an Attachment, got {attachment!r}"
    attachment.close()
    _assert_same(before, _state(model), f"{t.NAME}.attach and close")
    after = [{k: v for k, v in g.items() if k != "params"} for g in ctx.optimizer.param_groups]
    assert groups == after, "close must put the optimizer's groups back"
    hooks = len(ctx.optimizer._optimizer_step_pre_hooks) + len(ctx.optimizer._optimizer_step_post_hooks)
    assert not hooks, "close must remove the optimizer's hooks"


_ALL: tuple[Callable[[Technique], None], ...] = tuple(
    f for name, f in list(globals().items()) if name.startswith("_check_")
)
