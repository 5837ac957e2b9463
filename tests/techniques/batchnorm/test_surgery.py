"""Batch norms into a network and out of it."""

import copy

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from batchnorm_nets import Net, context, edits, image, reasons
from leanconv.contract import Context
from leanconv.graph import record
from leanconv.rewrite import rewrite
from leanconv.techniques import batchnorm
from leanconv.techniques.batchnorm import BatchNorm1d, BatchNorm2d, BatchNorm3d, Options
from leanconv_tests import close

# --- apply -----------------------------------------------------------------------------------------------------------


def plain() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 6, 3),
        nn.ReLU(),
        nn.Conv2d(6, 6, 3),
        nn.MaxPool2d(2),
        nn.SiLU(),
        nn.Flatten(),
        nn.Linear(24, 8),
        nn.ReLU(),
        nn.Linear(8, 2),
    ).double()


@pytest.mark.source("S10")
def test_it_stands_before_the_activation() -> None:
    model = plain()
    result = rewrite(model, batchnorm.apply(context(model, image()), Options(init="fresh")))
    kinds = [s.kind for s in record(result.model, image()).steps]
    assert kinds == [
        *("Conv2d", "BatchNorm2d", "ReLU", "Conv2d", "BatchNorm2d", "MaxPool2d", "SiLU", "Flatten"),
        *("Linear", "BatchNorm1d", "ReLU", "Linear"),
    ]
    assert result.model[0][0].bias is None, "the bias is cancelled, so it is dropped"
    assert model[0].bias is not None, "not in the user's network"
    assert result.keys["0.0.weight"] == "0.weight"
    assert not edits(batchnorm.apply(context(result.model, image()), Options(init="fresh")))


@pytest.mark.source("S9a")
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_keep_keeps_the_outputs(dtype: torch.dtype) -> None:
    model, x = plain().to(dtype).eval(), image().to(dtype)
    proposals = batchnorm.apply(context(model, x, [x, 3 * x + 1]), Options(init="keep"))
    assert {e.claim for e in edits(proposals)} == {"exact"}
    got, want = rewrite(model, proposals).model(x), model(x)
    close(got, want, copy.deepcopy(model).double()(x.double()))
    if dtype == torch.float64:
        assert torch.allclose(got, want, rtol=1e-10)


def test_keep_without_batches_is_refused() -> None:
    proposals = batchnorm.apply(context(plain(), image()), Options(init="keep"))
    assert not edits(proposals)
    assert "0: init='keep' calibrates on batches: give some" in reasons(proposals)


def test_functional_activations_and_other_dimensions() -> None:
    cases = [
        (nn.Conv1d(3, 4, 3), torch.randn(4, 3, 9), BatchNorm1d),
        (nn.Conv3d(3, 4, 3), torch.randn(2, 3, 5, 5, 5), BatchNorm3d),
        (nn.ConvTranspose2d(3, 4, 3), torch.randn(2, 3, 5, 5), BatchNorm2d),
    ]
    for conv, x, kind in cases:
        model = Net(lambda m, x: F.relu_(m.conv(x)), conv=conv)
        result = rewrite(model, batchnorm.apply(context(model, x), Options(init="fresh", eps=1e-3, momentum=0.2)))
        norm = result.model.conv[1]
        assert isinstance(norm, kind)
        assert (norm.eps, norm.momentum) == (1e-3, 0.2)


REFUSED = {
    "called twice": (lambda m, x: F.relu(m.conv(F.relu(m.conv(x)))), "conv is called 2 times"),
    "a sum before it": (lambda m, x: F.relu(m.conv(x) + x), "the step before it is add, not a convolution or Linear"),
    "used elsewhere": (lambda m, x: (lambda y: F.relu(y) + y)(m.conv(x)), "the output is used more than once"),
    "a gate": (lambda m, x: x * torch.sigmoid(m.conv(x)), "it is a gate: its output multiplies"),
    "weight read": (lambda m, x: F.relu(m.conv(x)) * m.conv.weight.sum(), "conv.weight is read by a function too"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_apply_refuses_with_a_reason(case: str) -> None:
    forward, reason = REFUSED[case]
    proposals = batchnorm.apply(
        context(Net(forward, conv=nn.Conv2d(3, 3, 3, padding=1).double()), image()), Options(init="fresh")
    )
    assert not edits(proposals)
    assert reason in reasons(proposals)


class Swish(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x * torch.sigmoid(x)


class Doubled(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(()))

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(x) * self.scale


@pytest.mark.parametrize(("act", "count"), [(Swish(), 1), (Doubled(), 0)])
def test_activations_of_other_libraries(act: nn.Module, count: int) -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), act).double()
    assert len(edits(batchnorm.apply(context(model, image()), Options(init="fresh")))) == count
    gate = Net(lambda m, x: x * m.act(m.conv(x)), conv=nn.Conv2d(3, 3, 1), act=act).double()
    assert not edits(batchnorm.apply(context(gate, image()), Options(init="fresh")))


def test_a_network_may_still_read_what_the_layer_is() -> None:
    """transformers' MobileNets pad by the convolution's stride and kernel."""
    model = Net(lambda m, x: F.relu(m.conv(x[..., :: m.conv.stride[0]])), conv=nn.Conv2d(3, 4, 1)).double().eval()
    result = rewrite(model, batchnorm.apply(context(model, image(), [image()]), Options()))
    assert len(result.edits) == 1
    assert torch.allclose(result.model(image()), model(image()), rtol=1e-10)
    normed = copy.deepcopy(result.model).conv
    assert normed.out_channels == 4
    with pytest.raises(AttributeError, match="no attribute 'depth'"):
        normed.depth  # noqa: B018


def test_linear_over_sequences_is_refused() -> None:
    model = nn.Sequential(nn.Linear(5, 5), nn.GELU())
    proposals = batchnorm.apply(context(model, torch.randn(2, 7, 5)), Options(init="fresh"))
    assert "whose channels are not in dimension 1" in reasons(proposals)


def test_without_a_graph_it_says_so() -> None:
    for proposals in (
        batchnorm.apply(Context(plain()), Options()),
        batchnorm.fold(Context(nn.Sequential(BatchNorm2d(3)))),
    ):
        assert "give an example input" in reasons(proposals)


def test_ties_survive() -> None:
    conv, twin = nn.Conv2d(3, 3, 3, padding=1), nn.Conv2d(3, 3, 3, padding=1)
    twin.weight = conv.weight
    model = nn.Sequential(conv, nn.ReLU(), nn.Sigmoid(), twin).double()
    proposals = batchnorm.apply(context(model, image()), Options(init="fresh"))
    assert len(edits(proposals)) == 1, reasons(proposals)
    result = rewrite(model, proposals)
    assert result.model[0][0].weight is result.model[3].weight


# --- remove ----------------------------------------------------------------------------------------------------------


def test_remove_keeps_the_activation_inside() -> None:
    x = image()
    model = nn.Sequential(nn.Conv2d(3, 4, 3), BatchNorm2d(4, activation="relu"), nn.BatchNorm2d(4)).double().eval()
    removed = rewrite(model, batchnorm.remove(context(model, x))).model
    assert [type(m) for m in removed] == [nn.Conv2d, nn.ReLU, nn.Identity]
    assert torch.equal(removed(x), F.relu(model[0](x)))


def test_remove_a_norm_under_two_paths() -> None:
    norm = BatchNorm2d(3)
    model = Net(lambda m, x: m.b(m.a(x)), a=norm, b=norm).double()
    removed = rewrite(model, batchnorm.remove(context(model, image()))).model
    assert torch.equal(removed(image()), image())
