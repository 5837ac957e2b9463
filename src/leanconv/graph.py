"""One real execution of a network, recorded: the only tracing code in leanconv.

A network is run once on an example, in eval mode, and every call of a leaf module and every functional operation
outside leaf modules becomes a :class:`Step`. Tensors are followed by identity, so reuse, skip connections, in-place
operations and modules that are called twice are seen as they happened. Nothing is parsed or symbolically traced.
"""

from __future__ import annotations

import contextlib
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd
from torch.nn.modules.padding import _CircularPadNd, _ConstantPadNd, _ReflectionPadNd, _ReplicationPadNd
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves, tree_map

from leanconv.errors import Error

__all__ = ["Given", "Graph", "Step", "evaluating", "is_leaf", "record"]

PADDING = (_ConstantPadNd, _ReflectionPadNd, _ReplicationPadNd, _CircularPadNd)


@dataclass(frozen=True)
class Given:
    """A tensor that a functional operation was given: a recorded one, or one that no step made.

    Attributes:
        value: id of the recorded tensor; None for parameters, constants and what was made of these alone.
        tensor: the tensor itself where there is no id.
    """

    value: int | None
    tensor: Tensor | None = None


@dataclass(frozen=True)
class Step:
    """A call of a leaf module, or a functional operation that ran outside every leaf module.

    Attributes:
        index: position in the order of execution.
        kind: class name of the leaf module (``Conv2d``) or name of the function (``add``, ``relu``, ``mul_``).
        path: module path of the leaf; of a functional operation, the innermost module that ran it (``""``: the root).
        number: which call of that leaf module this is, from 0; 0 for functional operations.
        module: the leaf module; None for a functional operation.
        inputs, outputs: ids of the tensors read and made, in order. Parameters and constants have none.
        params: names of the parameters and buffers that were read.
        ops: functions that ran inside the leaf module.
        inplace: whether an input was overwritten.
        arguments: non-tensor arguments of the call: ``"0"``, ``"1"``, ... and keywords.
        tensors: of a functional operation, tensor arguments by the same names; in lists and tuples likewise.
    """

    index: int
    kind: str
    path: str
    number: int
    module: nn.Module | None
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    params: tuple[str, ...]
    ops: tuple[str, ...] = ()
    inplace: bool = False
    arguments: Mapping[str, object] = field(default_factory=dict)
    tensors: Mapping[str, object] = field(default_factory=dict)


class Graph:
    """The steps of one execution, with the questions that surgery and checks ask of them."""

    def __init__(
        self,
        steps: tuple[Step, ...],
        inputs: tuple[int, ...],
        outputs: tuple[int, ...],
        shapes: Mapping[int, tuple[int, ...]],
        names: _Names,
    ) -> None:
        self.steps, self.inputs, self.outputs = steps, inputs, outputs
        self._shapes, self._names = shapes, names
        self._producer = {v: s for s in steps for v in s.outputs}
        self._consumers: dict[int, list[Step]] = defaultdict(list)
        self._calls: dict[str, list[Step]] = defaultdict(list)
        self._users: dict[str, list[Step]] = defaultdict(list)
        for step in steps:
            for value in dict.fromkeys(step.inputs):
                self._consumers[value].append(step)
            for name in step.params:
                self._users[name].append(step)
            if step.module is not None:
                self._calls[step.path].append(step)

    def shape(self, value: int) -> tuple[int, ...]:
        """Shape of a recorded tensor."""
        return self._shapes[value]

    def producer(self, value: int) -> Step | None:
        """The step that made a tensor; None for an input of the network."""
        return self._producer.get(value)

    def consumers(self, value: int) -> tuple[Step, ...]:
        """The steps that read a tensor, in order."""
        return tuple(self._consumers.get(value, ()))

    def calls(self, path: str) -> tuple[Step, ...]:
        """The calls of the leaf module at a path, under whichever of its names it ran."""
        return tuple(self._calls.get(self._names.path(path), ()))

    def users(self, name: str) -> tuple[Step, ...]:
        """The steps that read a parameter or buffer; tied names count as one."""
        return tuple(self._users.get(self._names.parameter(name), ()))

    def is_output(self, value: int) -> bool:
        """Whether a tensor is (part of) what the network returns."""
        return value in self.outputs

    def only_consumer(self, step: Step) -> Step | None:
        """The one step that reads the one output of ``step``; None if there are several, or the network returns it."""
        if len(step.outputs) != 1 or self.is_output(step.outputs[0]):
            return None
        readers = self.consumers(step.outputs[0])
        return readers[0] if len(readers) == 1 else None

    def hooked(self, path: str) -> bool:
        """Whether the module has hooks or parametrizations (weight norm, spectral norm, pruning) of its own."""
        return self._names.path(path) in self._names.hooked

    def aliased(self, path: str) -> tuple[str, ...]:
        """Every path under which this module stands."""
        return self._names.aliases.get(self._names.path(path), ())

    def tied(self, name: str) -> tuple[str, ...]:
        """Every name of this parameter or buffer."""
        return self._names.ties.get(self._names.parameter(name), ())


class _Names:
    """Paths of modules, names of parameters: the first name of each stands for all."""

    def __init__(self, model: nn.Module) -> None:
        by_module: dict[int, list[str]] = defaultdict(list)
        for path, module in model.named_modules(remove_duplicate=False):
            by_module[id(module)].append(path)
        self.aliases = {paths[0]: tuple(paths) for paths in by_module.values()}
        self._path = {p: paths[0] for paths in by_module.values() for p in paths}
        by_tensor: dict[int, list[str]] = defaultdict(list)
        for name, parameter in model.named_parameters(remove_duplicate=False):
            by_tensor[id(parameter)].append(name)
        for name, buffer in model.named_buffers(remove_duplicate=False):
            by_tensor[id(buffer)].append(name)
        self.tensors = {key: names[0] for key, names in by_tensor.items()}
        self.ties = {names[0]: tuple(names) for names in by_tensor.values()}
        self._parameter = {n: names[0] for names in by_tensor.values() for n in names}
        self.hooked = frozenset(path for path, module in model.named_modules() if _has_hooks(module))

    def path(self, path: str) -> str:
        return self._path.get(path, path)

    def parameter(self, name: str) -> str:
        return self._parameter.get(name, name)


def _has_hooks(module: nn.Module) -> bool:
    kinds = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
    return any(getattr(module, kind, None) for kind in kinds) or hasattr(module, "parametrizations")


def is_leaf(module: nn.Module) -> bool:
    """Whether a module counts as one step: no child modules, but for parametrizations and a convolution's padding.

    Convolutions that pad as TensorFlow does hold their padding as a module, or an Identity of their own.
    """
    pads = isinstance(module, _ConvNd)
    return all(name == "parametrizations" or (pads and _is_padding(child)) for name, child in module.named_children())


def _is_padding(module: nn.Module) -> bool:
    return isinstance(module, PADDING) or type(module).__name__ == "Identity"


@contextlib.contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Eval mode without gradients; training flags, buffers and the CPU generator are put back after."""
    flags = [(module, module.training) for module in model.modules()]
    buffers = [(b, b._version, b.detach().clone()) for b in model.buffers()]
    try:
        for module, _ in flags:
            module.training = False
        with torch.no_grad(), torch.random.fork_rng(devices=[]):
            yield
    finally:
        for module, flag in flags:
            module.training = flag
        with torch.no_grad():
            for buffer, version, before in buffers:
                if buffer._version != version:
                    buffer.copy_(before)


def record(
    model: nn.Module, example: Tensor | tuple[Tensor, ...], leaf: Callable[[nn.Module], bool] = is_leaf
) -> Graph:
    """Run a network once on an example and record what ran.

    The network runs in eval mode without gradients and is left as it was: flags, buffers, hooks, random numbers.

    Args:
        model: any module.
        example: its input, (N, C, ...), or a tuple of inputs.
        leaf: which modules count as one step; what runs in the others is recorded as functional operations.

    Raises:
        Error: the network does not run on the example.
    """
    inputs = example if isinstance(example, tuple) else (example,)
    recorder = _Recorder(model, leaf)
    # Views, so that an example which is also a buffer, or is returned unchanged, is still a tensor of its own.
    inputs = tuple(x.detach().view_as(x) for x in inputs)
    handles = recorder.hook(model)
    try:
        with evaluating(model):
            values = tuple(recorder.new_value(x) for x in inputs)
            with recorder:
                result = model(*inputs)
            outputs = tuple(recorder.value_of(t) for t in tree_leaves(result) if isinstance(t, Tensor))
    except Error:
        raise
    except Exception as error:
        shapes = ", ".join(str(tuple(x.shape)) for x in inputs)
        reason = str(error).strip().split("\n")[0]
        where = f" in {recorder.running}" if recorder.running else ""
        raise Error(
            f"graph: the network must run on an example of shape {shapes}, got {type(error).__name__}{where}: {reason}"
        ) from error
    finally:
        for handle in handles:
            handle.remove()
    return Graph(tuple(recorder.steps), values, outputs, recorder.shapes, recorder.names)


@dataclass
class _Frame:
    """A leaf module that is running."""

    path: str
    inputs: tuple[Tensor, ...]
    values: tuple[int, ...]
    versions: tuple[int, ...]
    params: list[str]
    ops: list[str]


class _Recorder(TorchFunctionMode):
    """Sees every torch function that runs and every module that is called."""

    def __init__(self, model: nn.Module, leaf: Callable[[nn.Module], bool]) -> None:
        super().__init__()
        self.names = _Names(model)
        self._is_leaf = leaf
        self.steps: list[Step] = []
        self.shapes: dict[int, tuple[int, ...]] = {}
        self._value: dict[int, int] = {}  # id of the tensor -> its present value
        self._derived: dict[int, tuple[str, ...]] = {}  # id of a tensor made of parameters alone -> their names
        self._alive: list[Tensor] = []  # so that no id is used twice
        self._storage: dict[int, list[Tensor]] = defaultdict(list)
        self._stack: list[str] = []
        self._leaf: _Frame | None = None
        self._count: dict[str, int] = defaultdict(int)
        self._paused = False

    @property
    def running(self) -> str:
        """Path of the innermost module that runs; after a failure, of the one that failed."""
        return self._leaf.path if self._leaf is not None else self._stack[-1] if self._stack else ""

    # --- tensors -------------------------------------------------------------------------------------------------

    def new_value(self, tensor: Tensor, value: int | None = None) -> int:
        value = len(self.shapes) if value is None else value
        self.shapes[value] = tuple(tensor.shape)
        if id(tensor) not in self._value:
            self._alive.append(tensor)
            self._storage[_storage(tensor)].append(tensor)
        self._value[id(tensor)] = value
        return value

    def value_of(self, tensor: Tensor) -> int:
        """The value of a tensor; one that no step made (a constant, a parameter that is returned) gets one here."""
        known = self._value.get(id(tensor))
        return self.new_value(tensor) if known is None else known

    def _read(self, tensors: list[Tensor]) -> tuple[tuple[int, ...], tuple[str, ...]]:
        values = tuple(self._value[id(t)] for t in tensors if id(t) in self._value)
        params: dict[str, None] = {}
        for t in tensors:
            if id(t) in self.names.tensors:
                params[self.names.tensors[id(t)]] = None
            params.update(dict.fromkeys(self._derived.get(id(t), ())))
        return values, tuple(params)

    def _overwritten(self, tensors: list[Tensor], versions: list[int]) -> list[Tensor]:
        """Tensors whose content changed, with all others that share their memory."""
        changed = [t for t, v in zip(tensors, versions, strict=True) if _version(t) != v and id(t) in self._value]
        shared = {id(s): s for t in changed for s in self._storage[_storage(t)]}
        return list(shared.values())

    def _fresh(self, result: Any, inputs: list[Tensor], overwritten: list[Tensor]) -> Any:
        """An operation that hands its input on unchanged gets an output of its own, so that it is seen in the chain."""
        kept = {id(t) for t in inputs if id(t) in self._value} - {id(t) for t in overwritten}
        if not any(isinstance(t, Tensor) and id(t) in kept for t in tree_leaves(result)):
            return result
        return tree_map(lambda t: t.view_as(t) if isinstance(t, Tensor) and id(t) in kept else t, result)

    def _made(self, result: Any, overwritten: list[Tensor]) -> tuple[int, ...]:
        """Values of what an operation made; two tensors that are the same view of the same memory are one value."""
        views: dict[object, int] = {}
        for t in (*tree_leaves(result), *overwritten):
            if isinstance(t, Tensor):
                view = (_storage(t), t.storage_offset(), t.shape, t.stride()) if overwritten else id(t)
                views[view] = self.new_value(t, views.get(view))
        return tuple(views.values())

    # --- functions -----------------------------------------------------------------------------------------------

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if self._paused:
            return func(*args, **kwargs)
        tensors = [t for t in tree_leaves((args, kwargs)) if isinstance(t, Tensor)]
        if self._leaf is not None:
            self._leaf.ops.append(_name(func))
            self._leaf.params.extend(self._read(tensors)[1])
            return func(*args, **kwargs)
        values, params = self._read(tensors)
        given = self._given(args, kwargs) if values else {}
        versions = [_version(t) for t in tensors]
        result = func(*args, **kwargs)
        if not values:
            self._remember_derived(result, params)
            return result
        overwritten = self._overwritten(tensors, versions)
        if not overwritten and not any(isinstance(t, Tensor) for t in tree_leaves(result)):
            return result  # a question such as x.shape
        result = self._fresh(result, tensors, overwritten)
        path = self._stack[-1] if self._stack else ""
        outputs = self._made(result, overwritten)
        arguments = _arguments(args, kwargs)
        inplace = bool(overwritten)
        self._add(Step(0, _name(func), path, 0, None, values, outputs, params, (), inplace, arguments, given))
        return result

    def _given(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> dict[str, object]:
        """Tensor arguments by name."""

        def told(t: Any) -> Any:
            value = self._value.get(id(t)) if isinstance(t, Tensor) else None
            return Given(value, t if value is None else None) if isinstance(t, Tensor) else t

        named = {str(i): a for i, a in enumerate(args)} | dict(kwargs)
        return {k: tree_map(told, a) for k, a in named.items() if any(isinstance(t, Tensor) for t in tree_leaves(a))}

    def _remember_derived(self, result: Any, params: tuple[str, ...]) -> None:
        for t in tree_leaves(result):
            if isinstance(t, Tensor) and params and id(t) not in self.names.tensors:
                self._derived[id(t)] = params
                self._alive.append(t)

    def _add(self, step: Step) -> None:
        self.steps.append(replace(step, index=len(self.steps)))

    @contextlib.contextmanager
    def _pause(self) -> Iterator[None]:
        self._paused = True
        try:
            yield
        finally:
            self._paused = False

    # --- modules -------------------------------------------------------------------------------------------------

    def hook(self, model: nn.Module) -> list[Any]:
        handles: list[Any] = []
        for path, module in model.named_modules():
            enter, leave = (self._enter_leaf, self._leave_leaf) if self._is_leaf(module) else (self._enter, self._leave)
            handles.append(module.register_forward_pre_hook(_bind(enter, path), with_kwargs=True))
            handles.append(module.register_forward_hook(_bind(leave, path), with_kwargs=True))
        return handles

    def _enter(self, path: str, module: nn.Module, args: Any, kwargs: Any) -> None:
        self._stack.append(path)

    def _leave(self, path: str, module: nn.Module, args: Any, kwargs: Any, result: Any) -> None:
        self._stack.pop()

    def _enter_leaf(self, path: str, module: nn.Module, args: Any, kwargs: Any) -> None:
        if self._leaf is not None:  # a module called from inside a leaf that does not own it
            return
        tensors = [t for t in tree_leaves((args, kwargs)) if isinstance(t, Tensor)]
        values, params = self._read(tensors)
        own = [self.names.tensors[id(t)] for t in (*module.parameters(), *module.buffers())]
        versions = tuple(_version(t) for t in tensors)
        self._leaf = _Frame(path, tuple(tensors), values, versions, [*own, *params], [])

    def _leave_leaf(self, path: str, module: nn.Module, args: Any, kwargs: Any, result: Any) -> Any:
        frame = self._leaf
        if frame is None or frame.path != path:
            return None
        with self._pause():
            overwritten = self._overwritten(list(frame.inputs), list(frame.versions))
            result = self._fresh(result, list(frame.inputs), overwritten)
            outputs = self._made(result, overwritten)
        params = tuple(dict.fromkeys(frame.params))
        number = self._count[path]
        self._count[path] += 1
        kind = type(module).__name__.removeprefix("Parametrized")
        ops, inplace, arguments = tuple(frame.ops), bool(overwritten), _arguments(args, kwargs)
        self._add(Step(0, kind, path, number, module, frame.values, outputs, params, ops, inplace, arguments))
        self._leaf = None
        return result


def _bind(function: Callable[..., Any], path: str) -> Callable[..., Any]:
    return lambda *args: function(path, *args)


def _version(tensor: Tensor) -> int:
    return -1 if tensor.is_inference() else tensor._version


def _storage(tensor: Tensor) -> int:
    try:
        return int(tensor.untyped_storage()._cdata)
    except (NotImplementedError, RuntimeError):  # sparse and other tensors without a storage
        return id(tensor)


def _name(func: Callable[..., Any]) -> str:
    name = getattr(func, "__name__", type(func).__name__)
    return getattr(func.__self__, "__name__", name) if name == "__get__" and hasattr(func, "__self__") else name


def _arguments(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> dict[str, object]:
    positional = {str(i): a for i, a in enumerate(args) if not isinstance(a, Tensor)}
    return positional | {k: a for k, a in kwargs.items() if not isinstance(a, Tensor)}
