"""Norms of one kind into another, and batch norms before their activations."""

import copy

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from batchnorm_nets import Net, context, edits, image, reasons, settled
from leanconv.contract import Context
from leanconv.errors import Error
from leanconv.graph import record
from leanconv.rewrite import Rewritten, rewrite
from leanconv.techniques import batchnorm
from leanconv.techniques.batchnorm import BatchNorm1d, BatchNorm2d, BatchNorm3d
from leanconv_tests import close

CONVERSIONS = {
    "frozen": (batchnorm.to_frozen, "exact"),
    "torch": (batchnorm.to_torch, "exact"),
    "ours": (batchnorm.from_torch, "exact"),
    "synchronised": (batchnorm.to_synchronised, "exact"),
    "group": (batchnorm.to_group, "changes"),
}


def mixed() -> nn.Module:
    model = nn.Sequential(
        nn.Conv2d(3, 6, 3),
        BatchNorm2d(6, activation="relu", eps=1e-3, momentum=None),
        nn.Conv2d(6, 4, 3),
        nn.BatchNorm2d(4, momentum=0.3),
        nn.ReLU(),
        BatchNorm2d(4, activation=torch.tanh, affine=False),
    )
    model = settled(model, image())
    model[1].weight.requires_grad_(False)
    model.train()
    model[3].eval()
    return model


def converted(model: nn.Module, proposals: list) -> Rewritten:
    result = rewrite(model, proposals)
    old, new = model.state_dict(), result.model.state_dict()
    for name, source in result.keys.items():
        assert torch.equal(new[name], old[source]), f"{source} -> {name}"
    return result


@pytest.mark.parametrize("name", CONVERSIONS)
def test_claims_keys_flags_and_outputs(name: str) -> None:
    convert, claim = CONVERSIONS[name]
    model, x = mixed(), image()
    before = copy.deepcopy(model.state_dict())
    flags = [(m, m.training) for m in model.modules()]
    proposals = convert(Context(model))
    assert {e.claim for e in edits(proposals)} == {claim}
    assert not reasons(proposals)
    result = converted(model, proposals)
    assert all(m.training == flag for m, flag in flags)
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    assert result.model.training
    assert not result.model[3].training
    if name != "group":
        assert set(result.keys) == set(result.model.state_dict()), "every entry is a rename"
        assert set(result.keys.values()) == set(before), "and none is lost"
        assert torch.allclose(result.model.eval()(x), model.eval()(x), rtol=1e-12, atol=1e-12)
    single, low = copy.deepcopy(model).float().eval(), copy.deepcopy(result.model).float().eval()
    if name != "group":
        close(low(x.float()), single(x.float()), copy.deepcopy(single).double()(x))


def test_to_frozen_stands_still() -> None:
    model, x = mixed(), image()
    frozen = converted(model, batchnorm.to_frozen(Context(model))).model.train()
    before = copy.deepcopy(frozen.state_dict())
    assert torch.equal(frozen(x), frozen.eval()(x))
    assert all(torch.equal(v, before[k]) for k, v in frozen.state_dict().items())
    assert not any(p.requires_grad for i in (1, 3) for p in frozen[i].parameters())
    assert model[3].weight.requires_grad
    assert not batchnorm.to_frozen(Context(frozen))
    batchnorm.unfreeze(frozen)
    assert edits(batchnorm.to_frozen(Context(frozen)))


def test_to_frozen_refuses() -> None:
    twins = nn.Sequential(BatchNorm2d(3), BatchNorm2d(3), BatchNorm2d(3, track_running_stats=False))
    twins[1].weight = twins[0].weight
    told = reasons(batchnorm.to_frozen(Context(twins)))
    assert told.count("gamma or beta is shared with a layer that goes on learning") == 2
    assert "2: it has no running statistics to stand on" in told
    same = Net(lambda m, x: m.b(m.a(x)), a=(norm := BatchNorm2d(3)), b=norm)
    (edit,) = batchnorm.to_frozen(Context(same))
    assert set(edit.put) == {"a", "b"}


def test_to_torch_and_back() -> None:
    model, x = mixed(), image()
    theirs = converted(model, batchnorm.to_torch(Context(model))).model
    assert not any(isinstance(m, batchnorm.LAYERS) for m in theirs.modules())
    assert [type(m) for m in theirs[1]] == [nn.BatchNorm2d, nn.ReLU]
    assert (theirs[1][0].eps, theirs[1][0].momentum) == (1e-3, None)
    assert not theirs[1][0].weight.requires_grad
    ours = converted(theirs, batchnorm.from_torch(Context(theirs))).model
    assert sum(isinstance(m, batchnorm.LAYERS) for m in ours.modules()) == 3
    one, two = copy.deepcopy(model).train(), copy.deepcopy(ours).train()
    assert torch.allclose(one(x), two(x), rtol=1e-10, atol=1e-12), "they train alike"
    assert not batchnorm.to_torch(Context(theirs))
    assert not batchnorm.from_torch(Context(ours))


@pytest.mark.parametrize("kind", [0, 1])
@pytest.mark.parametrize("dims", [1, 2, 3])
def test_frozen_layers_stay_frozen(dims: int, kind: int) -> None:
    pair = ((BatchNorm1d, nn.BatchNorm1d), (BatchNorm2d, nn.BatchNorm2d), (BatchNorm3d, nn.BatchNorm3d))[dims - 1]
    model = nn.Sequential(pair[kind](3))
    batchnorm.freeze(model, affine=False)
    convert = (batchnorm.to_torch, batchnorm.from_torch)[kind]
    new = converted(model, convert(Context(model))).model
    assert isinstance(new[0], pair[1 - kind])
    assert batchnorm.frozen(new[0])
    assert new[0].weight.requires_grad
    new.train()(torch.randn(2, 3, *[4] * dims))
    assert not new[0].running_mean.any()


def test_from_torch_refuses() -> None:
    class Own(nn.BatchNorm2d):
        def forward(self, x: Tensor) -> Tensor:
            return 2 * super().forward(x)

    hooked = nn.BatchNorm2d(3)
    hooked.register_forward_hook(lambda *args: None)
    still = nn.BatchNorm2d(3)
    still.track_running_stats = False
    cases = {
        "Own has a forward of its own": Own(3),
        "it has hooks or parametrizations": hooked,
        "SyncBatchNorm has no counterpart here": nn.SyncBatchNorm(3),
        "its track_running_stats was changed": still,
        "it has only one of gamma and beta": nn.BatchNorm2d(3, bias=False),
        "momentum must satisfy 0 <= momentum <= 1 or be None, got momentum=1.5": nn.BatchNorm2d(3, momentum=1.5),
    }
    for reason, norm in cases.items():
        proposals = batchnorm.from_torch(Context(nn.Sequential(norm)))
        assert not edits(proposals)
        assert reason in reasons(proposals)


def test_to_synchronised_trains_as_before_in_one_process() -> None:
    model, x = mixed(), image()
    new = converted(model, batchnorm.to_synchronised(Context(model))).model
    assert sum(isinstance(m, nn.SyncBatchNorm) for m in new.modules()) == 3
    assert torch.allclose(model.train()(x), new.train()(x), rtol=1e-10, atol=1e-12)
    assert torch.allclose(model[3].running_var, new[3].running_var)
    assert not batchnorm.to_synchronised(Context(new))


def test_a_norm_that_is_the_network_itself() -> None:
    norm = BatchNorm2d(3, activation="relu")
    result = converted(norm, batchnorm.to_torch(Context(norm)))
    assert result.keys["0.weight"] == "weight"


@pytest.mark.parametrize(("channels", "limit", "groups"), [(48, 32, 24), (64, 32, 32), (7, 4, 1), (7, 32, 7)])
def test_to_group_takes_the_largest_divisor(channels: int, limit: int, groups: int) -> None:
    model = nn.Sequential(nn.BatchNorm2d(channels))
    nn.init.uniform_(model[0].weight)
    (edit,) = batchnorm.to_group(context(model, torch.randn(2, channels, 4, 4)), limit)
    new = edit.put["0"]
    assert edit.why == f"0 as a group norm of {groups} groups for {channels} channels"
    assert new.num_groups == groups
    assert new.weight is model[0].weight
    x = torch.randn(2, channels, 4, 4)
    assert torch.equal(new(x), F.group_norm(x, groups, model[0].weight, model[0].bias, 1e-5))
    assert edit.keys == {"0.weight": "0.weight", "0.bias": "0.bias"}


def test_to_group_refuses_groups_of_one_value() -> None:
    model = nn.Sequential(nn.Linear(4, 8), BatchNorm1d(8))
    proposals = batchnorm.to_group(context(model, torch.randn(2, 4)), 8)
    assert "each of 8 groups of 8 channels would hold one value" in reasons(proposals)
    assert edits(batchnorm.to_group(context(model, torch.randn(2, 4)), 4))
    with pytest.raises(Error, match=r"^to_group: groups must be an integer >= 1, got groups=0$"):
        batchnorm.to_group(Context(model), 0)


def test_ties_survive_a_conversion() -> None:
    model = nn.Sequential(BatchNorm2d(3), BatchNorm2d(3))
    model[1].weight = model[0].weight
    new = converted(model, batchnorm.to_torch(Context(model))).model
    assert new[0].weight is new[1].weight is not model[0].weight


# --- reorder ---------------------------------------------------------------------------------------------------------


@pytest.mark.source("S10")
@pytest.mark.parametrize("act", [nn.ReLU(inplace=True), nn.PReLU(4), nn.SiLU()])
def test_reorder_puts_the_batch_norm_before_the_activation(act: nn.Module) -> None:
    x = image()
    model = settled(nn.Sequential(nn.Conv2d(3, 4, 3), copy.deepcopy(act), nn.BatchNorm2d(4), nn.Conv2d(4, 2, 1)), x)
    proposals = batchnorm.reorder(context(model, x))
    assert [e.claim for e in edits(proposals)] == ["changes"]
    result = converted(model, proposals)
    assert [s.kind for s in record(result.model, x).steps] == ["Conv2d", "BatchNorm2d", type(act).__name__, "Conv2d"]
    assert result.keys["1.running_mean"] == "2.running_mean"
    assert set(result.keys) == set(result.model.state_dict())
    assert torch.allclose(result.model(x), model[3](model[1](model[2](model[0](x)))))
    assert not batchnorm.reorder(context(result.model, x))


REFUSED = {
    "a function": (lambda m, x: m.norm(F.relu(m.conv(x))), "the activation before it is the function relu"),
    "between": (lambda m, x: m.norm(F.max_pool2d(m.act(m.conv(x)), 2)), "something stands between act and it"),
    "read twice": (lambda m, x: m.norm(y := m.act(m.conv(x))) + y, None),
    "called twice": (lambda m, x: m.norm(m.act(m.conv(m.act(x)))), "act is called 2 times"),
    "inside": (lambda m, x: m.norm(m.other(x)), "the activation stands inside another batch norm"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_reorder_refuses_with_the_reason(case: str) -> None:
    forward, reason = REFUSED[case]
    parts = {"conv": nn.Conv2d(3, 3, 1), "act": nn.ReLU(), "norm": BatchNorm2d(3)}
    model = Net(forward, **parts, other=BatchNorm2d(3, activation="relu")).double().eval()
    proposals = batchnorm.reorder(context(model, image()))
    assert not edits(proposals)
    assert (reason or "used elsewhere") in reasons(proposals)


def test_reorder_needs_a_graph() -> None:
    assert "give an example input" in reasons(batchnorm.reorder(Context(nn.Sequential(nn.ReLU(), BatchNorm2d(3)))))
