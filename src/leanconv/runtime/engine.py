"""A network from a ``.lean`` file, ready to run."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from leanconv import _native
from leanconv.errors import Error
from leanconv.runtime.file import read
from leanconv.runtime.limits import check_limits
from leanconv.runtime.plan import Plan
from leanconv.runtime.threads import usable_cores

if TYPE_CHECKING:  # at run time these would cost milliseconds to import, before anything is done
    from types import TracebackType

    from numpy.typing import NDArray

    from leanconv.runtime.file import Tensors
    from leanconv.runtime.images import Progress
    from leanconv.runtime.prediction import Prediction

    Image = str | os.PathLike[str] | bytes | NDArray[np.uint8]
    """An image file, an encoded image, or pixels (H, W) or (H, W, 3)."""

__all__ = ["Engine", "load"]

_BATCH, _THREADS = 16, 64

Unreadable = Callable[[str, str], None]
"""Called with an image and why it could not be read."""


class _Runner(Protocol):
    def run(self, batch: NDArray[np.float32]) -> NDArray[np.float32]: ...


def load(path: str | os.PathLike[str], threads: int | None = None, verify: bool = False, limits: bool = True) -> Engine:
    """Open a ``.lean`` file.

    Args:
        path: the file. It is mapped into memory: replace it as a whole while it is open, never write into it.
        threads: how many a call may use, 1 to 64; None: what affinity and the control group's quota grant this process.
        verify: compare the weights with their SHA-256 (10 to 40 ms for 17 MB). The rest of the file, and every bound,
            is always checked.
        limits: refuse a network that needs more memory than this machine has, or takes minutes for one image
            (:mod:`leanconv.runtime.limits`).

    Returns:
        The network.

    Raises:
        Error: no such file, or one that :func:`leanconv.runtime.file.read` refuses; ``threads`` out of range;
            beyond the limits.
    """
    plan, tensors = read(path, verify)
    name = os.path.basename(path)
    if limits:
        check_limits(plan, name)
    return Engine(plan, tensors, threads, name)


class Engine:
    """A network that is ready to run; :func:`load` makes it.

    Calls from several threads are safe; native code runs them one after another. Several engines run at once, each with
    threads of its own. It is a context manager that closes itself.

    Args:
        plan: one that :func:`leanconv.runtime.checking.check` lets pass.
        tensors: name -> float32.
        threads: as of :func:`load`.
        name: begins the messages.

    Attributes:
        plan: what the file says.
        classes: names of the output's channels; empty where they have none.
        input_shape: (C, H, W) of one image.
        output_shape: (K,) or (C, H, W) of one image's result.
        threads: how many a call may use.
        executor: ``native`` or ``numpy``.

    Raises:
        Error: ``threads`` out of range; ``LEANCONV_NATIVE=1`` and no native code.
    """

    def __init__(self, plan: Plan, tensors: Tensors, threads: int | None = None, name: str = "network") -> None:
        if threads is not None and not 1 <= threads <= _THREADS:
            raise Error(f"{name}: threads must be 1 to {_THREADS}, got {threads}")
        self.plan = plan
        self.classes = plan.classes
        height, width, channels = plan.values[plan.input].shape
        self.input_shape = (channels, height, width)
        height, width, channels = plan.values[plan.output].shape
        self.output_shape = (channels,) if height == width == 1 else (channels, height, width)
        self.threads = min(usable_cores(), _THREADS) if threads is None else threads
        self._name = name
        self.executor, runner = _runner(plan, tensors, self.threads)
        self._runner: _Runner | None = runner

    def __call__(self, batch: NDArray[Any]) -> NDArray[np.float32]:
        """The network's output, in torch's order of dimensions.

        The engine works channels last. A batch whose memory is (N, H, W, C) already, ``x.transpose(0, 3, 1, 2)`` of
        such an array or a channels_last tensor's ``numpy()``, is taken as it is; any other is copied, 0.2 ms for an
        image of 3 x 224 x 224. Results are not copied.

        Args:
            batch: floating point (N, C, H, W), computed with in float32; one image is ``image[None]``.

        Returns:
            float32 (N, K) where the output is a vector, else (N, C, H, W), whose memory is (N, H, W, C).

        Raises:
            Error: another shape or dtype, too little memory, or the engine is closed.
        """
        if not isinstance(batch, np.ndarray) or batch.dtype.kind != "f":
            got = batch.dtype if isinstance(batch, np.ndarray) else type(batch).__name__
            raise Error(f"{self._name}: a batch must be a numpy array of floating point numbers, got {got}")
        if batch.ndim != 4 or batch.shape[1:] != self.input_shape:
            wanted = ", ".join(map(str, self.input_shape))
            raise Error(f"{self._name}: a batch must have the shape (N, {wanted}), got {batch.shape}")
        y = self.run(np.ascontiguousarray(batch.transpose(0, 2, 3, 1), np.float32))
        return y.reshape(len(y), *self.output_shape) if len(self.output_shape) == 1 else y.transpose(0, 3, 1, 2)

    def run(self, batch: NDArray[np.float32]) -> NDArray[np.float32]:
        """The network's output, channels last: nothing is transposed.

        Args:
            batch: float32 (N, H, W, C), contiguous.

        Returns:
            float32 (N, h, w, c).

        Raises:
            Error: another shape or dtype, too little memory, or the engine is closed.
        """
        channels, height, width = self.input_shape
        whole = batch.dtype == np.float32 and batch.flags.c_contiguous
        if not whole or batch.ndim != 4 or batch.shape[1:] != (height, width, channels):
            got = f"{batch.dtype} {batch.shape}"
            rule = f"must be float32 (N, {height}, {width}, {channels}), contiguous"
            raise Error(f"{self._name}: a batch {rule}, got {got}")
        if not len(batch):
            return np.empty((0, *self.plan.values[self.plan.output].shape), np.float32)
        runner = self._runner  # a call that runs keeps it, whoever closes the engine meanwhile
        if runner is None:
            raise Error(f"{self._name}: must be open, got a call after close()")
        try:
            return runner.run(batch)
        except MemoryError:
            each = f"{4 * self.plan.memory:,} bytes for each of {len(batch)} images"
            raise Error(f"{self._name}: its memory must be there, {each}, got less") from None

    def classify(
        self,
        images: Image | Sequence[Image],
        top: int | None = None,
        *,
        unreadable: Unreadable | None = None,
        progress: Progress | None = None,
    ) -> list[Prediction]:
        """Classes with probabilities for each image.

        Images are read as the training read them, with what the file says of size, mode, mean and deviation, in
        threads; 64 of them are in memory at a time, however many there are, and 16 run at once. Probabilities are the
        softmax of the outputs, unless the network ends with one.

        Args:
            images: a file, an encoded image, uint8 pixels (H, W) or (H, W, 3), or a list of these.
            top: so many classes, the most probable ones; None: all.
            unreadable: called with (image, reason) for an image that cannot be read, which is then left out; None: that
                is an error.
            progress: called with (images done, images in all).

        Returns:
            One for each image, in their order.

        Raises:
            Error: the file does not say how an image is read, the output is no vector, an image cannot be read, Pillow
                is missing, ``top`` below 1, or the engine is closed.
        """
        if top is not None and top < 1:
            raise Error(f"{self._name}: top must be at least 1, got {top}")
        if self.plan.picture is None or len(self.output_shape) != 1:
            got = "a file without a picture" if self.plan.picture is None else f"an output of shape {self.output_shape}"
            raise Error(f"{self._name}: to classify, it must read images and put out a vector, got {got}")
        given = [images] if isinstance(images, str | os.PathLike | bytes | np.ndarray) else list(images)
        classes = self.classes or tuple(map(str, range(self.output_shape[0])))
        return [
            _prediction(name, classes, row, top)
            for names, pixels in self._read(given, unreadable, progress)
            for name, row in zip(names, self._probabilities(pixels), strict=True)
        ]

    def times(self) -> list[float] | None:
        """Seconds that each of ``plan.steps`` took in the last run; zeros before the first, None without native code.

        Raises:
            Error: the engine is closed.
        """
        runner = self._runner
        if runner is None:
            raise Error(f"{self._name}: must be open, got a call after close()")
        times = getattr(runner, "times", None)
        return None if times is None else list(times())

    def close(self) -> None:
        """Give memory and threads back; calls after that are errors."""
        self._runner = None

    def __enter__(self) -> Engine:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        shapes = f"{'x'.join(map(str, self.input_shape))} -> {'x'.join(map(str, self.output_shape))}"
        return f"Engine({self._name}: {shapes}, {len(self.plan.steps)} steps, {self.executor}, {self.threads} threads)"

    def _read(
        self, given: list[Any], unreadable: Unreadable | None, progress: Progress | None
    ) -> Iterator[tuple[list[str], NDArray[np.uint8]]]:
        """Names and pixels uint8 (n, H, W, C) of those that can be read, some at a time."""
        from pathlib import Path

        from leanconv.runtime.images import Refused, square, squares, strict_pillow

        picture = self.plan.picture
        assert picture is not None  # classify has looked
        names = [_name(i, one) for i, one in enumerate(given)]
        pictures = (Path(one) if isinstance(one, str | os.PathLike) else one for one in given)
        channels = self.input_shape[0]
        if len(given) == 1:  # threads would take longer to start than the image to read
            with strict_pillow():
                results = iter([square(next(pictures), picture.side, channels)])
        else:
            results = squares(pictures, len(given), picture.side, channels, progress)
        read = zip(names, results, strict=True)
        while chunk := list(islice(read, _BATCH)):
            for name, one in chunk:
                if isinstance(one, Refused):
                    if unreadable is None:
                        raise Error(f"image: must be readable, got {one.reason} from {name!r}")
                    unreadable(name, one.reason)
            good = [(name, one) for name, one in chunk if not isinstance(one, Refused)]
            if good:
                yield [name for name, _ in good], np.stack([one.transpose(1, 2, 0) for _, one in good])

    def _probabilities(self, pixels: NDArray[np.uint8]) -> NDArray[np.float64]:
        from leanconv.runtime.images import normalise

        picture = self.plan.picture
        assert picture is not None
        x = normalise(np.ascontiguousarray(pixels), picture.mean, picture.std)
        y = self.run(x).reshape(len(x), -1).astype(np.float64)
        last = next(step for step in reversed(self.plan.steps) if step.output == self.plan.output)
        if last.op != "softmax":
            y = np.exp(y - y.max(1, keepdims=True))
        return np.asarray(y / y.sum(1, keepdims=True))


def _runner(plan: Plan, tensors: Tensors, threads: int) -> tuple[str, _Runner]:
    """What runs the plan, and its name: the one place that chooses."""
    if _native.load() is not None:
        from leanconv.runtime.compiled import Compiled

        return "native", Compiled(plan, tensors, threads)
    from leanconv.runtime.reference import Reference

    return "numpy", Reference(plan, tensors)


def _name(place: int, image: Any) -> str:
    return os.fspath(image) if isinstance(image, str | os.PathLike) else f"image {place}"


def _prediction(image: str, names: tuple[str, ...], probabilities: NDArray[np.float64], top: int | None) -> Prediction:
    from leanconv.runtime.prediction import Prediction

    order = np.argsort(-probabilities, kind="stable")[:top].tolist()
    chosen = tuple(float(probabilities[i]) for i in order)
    return Prediction(image, tuple(names[i] for i in order), chosen, (0.0,) * len(order))
