"""Small networks in which each technique is a switch."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from leanconv.errors import Error
from leanconv.models.blocks import ImageClassifier, check_options, initialise
from leanconv.techniques.batchnorm import BatchNorm2d
from leanconv.techniques.dropout import Dropout
from leanconv.techniques.separable import SeparableConv2d

__all__ = ["mlp", "plain"]

# (output channels as a multiple of the width, stride) of each convolution.
_ROWS: tuple[Sequence[int], ...] = ((1, 1), (2, 2), (2, 1), (4, 2), (4, 1), (4, 1))


def plain(
    dropout: float | bool = False,
    batchnorm: bool = False,
    separable: bool = False,
    num_classes: int = 10,
    in_chans: int = 1,
    width: int = 32,
    rows: Sequence[Sequence[int]] = _ROWS,
    grid: int = 1,
) -> ImageClassifier:
    """3x3 convolutions with ReLU, six as it comes, mean over positions, one linear layer; each technique is a switch.

    Args:
        dropout: the probability to drop a unit before the linear layer; True is 0.5, False leaves dropout out.
        batchnorm: batch norm before each activation; it stands in for the convolutions' biases.
        separable: every convolution but the first is separable.
        num_classes: outputs.
        in_chans: channels of the image: 1 grey, 3 colour.
        width: channels of the first convolution; the last has four times as many, unless ``rows`` says otherwise.
        rows: of each convolution, output channels as a multiple of the width, and stride.
        grid: the mean is taken in each of grid x grid parts of the map; the linear layer sees all of them.

    Shape: (N, in_chans, H, W) -> (N, num_classes), for images of 28 to 96 pixels; four times smaller maps at the end,
    unless ``rows`` says otherwise.

    Raises:
        Error: an option out of range.

    Source: S28.
    """
    check_options("plain", num_classes=num_classes, in_chans=in_chans, width=width, grid=grid)
    layers: list[nn.Module] = []
    channels = in_chans
    for times, stride in _pairs(rows):
        layers += _layer(channels, width * times, stride, separable and bool(layers), batchnorm)
        channels = width * times
    head = _head("plain", channels * grid**2, num_classes, dropout)
    model = ImageClassifier("plain", in_chans, nn.Sequential(*layers), head, grid=grid)
    initialise(model)
    return model


def _pairs(rows: Sequence[Sequence[int]]) -> Sequence[Sequence[int]]:
    counts = isinstance(rows, Sequence) and not isinstance(rows, str) and len(rows) > 0
    if not counts or any(not isinstance(r, Sequence) or len(r) != 2 for r in rows):
        raise Error(f"plain: rows must be pairs (multiple of the width, stride), got rows={rows!r}")
    for times, stride in rows:
        check_options("plain", rows=times)
        check_options("plain", rows=stride)
    return rows


def _layer(inputs: int, outputs: int, stride: int, separable: bool, batchnorm: bool) -> list[nn.Module]:
    make = SeparableConv2d if separable else nn.Conv2d
    convolution: nn.Module = make(inputs, outputs, 3, stride, 1, bias=not batchnorm)
    return [convolution, *([BatchNorm2d(outputs)] if batchnorm else []), nn.ReLU()]


def _head(name: str, inputs: int, outputs: int, dropout: float | bool) -> nn.Sequential:
    p = probability(name, dropout)
    return nn.Sequential(*([Dropout(p)] if p else []), nn.Linear(inputs, outputs))


def probability(name: str, dropout: float | bool) -> float:
    """The dropout probability of a switch: True is 0.5, False 0.

    Raises:
        Error: not a number in [0, 1).
    """
    p = 0.5 * dropout if isinstance(dropout, bool) else dropout
    if not isinstance(p, int | float) or not 0 <= p < 1:
        raise Error(f"{name}: dropout must be False, True or satisfy 0 <= dropout < 1, got dropout={dropout!r}")
    return float(p)


class _Perceptron(nn.Module):
    """See :func:`mlp`."""

    def __init__(self, in_chans: int, imgsz: int, layers: nn.Module) -> None:
        super().__init__()
        self.in_chans, self.imgsz = in_chans, imgsz
        self.flatten = nn.Flatten()
        self.layers = layers

    def forward(self, x: Tensor) -> Tensor:
        """(N, in_chans, imgsz, imgsz) -> (N, num_classes)."""
        shape = (self.in_chans, self.imgsz, self.imgsz)
        if tuple(x.shape[1:]) != shape:
            raise Error(f"mlp: the input must be (N, {', '.join(map(str, shape))}), got {tuple(x.shape)}")
        y: Tensor = self.layers(self.flatten(x))
        return y


def mlp(
    dropout: float | bool = False,
    hidden: int | Sequence[int] = (256, 256),
    num_classes: int = 10,
    in_chans: int = 1,
    imgsz: int = 28,
) -> nn.Module:
    """A fully connected network, as in the figure that explains dropout.

    Args:
        dropout: the probability to drop a hidden unit; True is 0.5, False leaves dropout out.
        hidden: units of each hidden layer.
        num_classes: outputs.
        in_chans: channels of the image.
        imgsz: side of the (square) image.

    Shape: (N, in_chans, imgsz, imgsz) -> (N, num_classes).

    Raises:
        Error: an option out of range; an input of another shape.

    Source: S6; Srivastava et al. 2014.
    """
    units = (hidden,) if isinstance(hidden, int) else tuple(hidden)
    check_options("mlp", num_classes=num_classes, in_chans=in_chans, imgsz=imgsz)
    for count in units:
        check_options("mlp", hidden=count)
    p = probability("mlp", dropout)
    layers: list[nn.Module] = []
    size = in_chans * imgsz * imgsz
    for count in units:
        layers += [nn.Linear(size, count), nn.ReLU(), *([Dropout(p)] if p else [])]
        size = count
    return _Perceptron(in_chans, imgsz, nn.Sequential(*layers, nn.Linear(size, num_classes)))
