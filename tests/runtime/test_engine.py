"""The engine: batches, photos, threads, and what it refuses."""

from __future__ import annotations

import os
import threading
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

import leanconv
from byte_plans import in_bytes
from lean_plans import Builder, Tensors, allowed, by_torch, mobilenet, plans
from leanconv import data, runtime
from leanconv.errors import Error
from leanconv.runtime import Engine, engine, load
from leanconv.runtime.file import write
from leanconv.runtime.plan import Picture, Plan, Step, Window
from pictures import picture


@pytest.fixture(params=["numpy", "native"], autouse=True)
def _executor(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """With native code where there is any, and without."""
    if request.param == "numpy":
        monkeypatch.setenv("LEANCONV_NATIVE", "0")


@pytest.fixture(scope="module")
def made() -> tuple[Plan, Tensors]:
    return mobilenet(0.25, 32, 10)


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory, made: tuple[Plan, Tensors]) -> Path:
    path = tmp_path_factory.mktemp("engine") / "m.lean"
    write(path, *made)
    return path


def batch(n: int, seed: int = 0) -> NDArray[np.float32]:
    return np.random.default_rng(seed).standard_normal((n, 3, 32, 32)).astype(np.float32)


def last_first(x: NDArray[Any]) -> NDArray[Any]:
    return np.ascontiguousarray(x.transpose(0, 2, 3, 1))


def test_it_gives_what_torch_gives(path: Path, made: tuple[Plan, Tensors]) -> None:
    x = batch(5)
    with leanconv.runtime.load(path, threads=1) as net:
        assert (net.input_shape, net.output_shape, net.threads) == ((3, 32, 32), (10,), 1)
        assert net.classes == made[0].classes
        assert net.plan == made[0]
        assert net.executor in repr(net)
        y = net(x)
    assert (y.shape, y.dtype) == ((5, 10), np.float32)
    exact = by_torch(*made, last_first(x), torch.float64)[:, 0, 0]
    assert np.abs(y - exact).max() <= allowed(*made, last_first(x))


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(plans(), st.integers(0, 3))
def test_random_plans_run_from_their_file(tmp_path: Path, made: tuple[Plan, Tensors], n: int) -> None:
    write(tmp_path / "m.lean", *made)
    height, width, channels = made[0].values[0].shape
    x = np.random.default_rng(n).standard_normal((n, height, width, channels)).astype(np.float32)
    with load(tmp_path / "m.lean") as net:
        channels_last = net.run(x)
        y = net(x.transpose(0, 3, 1, 2))
    assert y.shape == (n, *net.output_shape)
    assert np.array_equal(channels_last, y[:, None, None] if y.ndim == 2 else y.transpose(0, 2, 3, 1))
    if n:
        exact = by_torch(*made, x, torch.float64)
        assert np.abs(channels_last - exact).max() <= allowed(*made, x)


def test_every_order_in_memory_gives_the_same(path: Path) -> None:
    x = batch(3)
    with load(path) as net:
        y = net(x)
        assert np.array_equal(net(last_first(x).transpose(0, 3, 1, 2)), y)
        assert np.array_equal(net(np.asfortranarray(x)), y)
        assert np.array_equal(net(x.astype(np.float64)), y)
        assert np.array_equal(net(np.repeat(x, 2, 0)[::2]), y)
        assert net(x[:0]).shape == (0, 10)
        kept = x.copy()
        net(x)
        assert np.array_equal(x, kept)


def test_ten_threads_on_one_engine_and_two_engines_at_once(path: Path) -> None:
    inputs = [batch(2, seed) for seed in range(10)]
    with load(path) as one, load(path, threads=2) as two:
        alone = [one(x) for x in inputs]
        found: dict[tuple[int, int], NDArray[np.float32]] = {}

        def work(i: int) -> None:
            for turn in range(8):
                found[i, turn] = (two if turn % 2 else one)(inputs[i])

        workers = [threading.Thread(target=work, args=(i,)) for i in range(10)]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()
    assert len(found) == 80
    assert all(np.array_equal(y, alone[i]) for (i, _), y in found.items())


@pytest.mark.parametrize(
    ("x", "told"),
    {
        "channels last": (np.zeros((1, 32, 32, 3), np.float32), r"shape \(N, 3, 32, 32\), got \(1, 32, 32, 3\)"),
        "one image": (np.zeros((3, 32, 32), np.float32), r"shape \(N, 3, 32, 32\), got \(3, 32, 32\)"),
        "pixels": (np.zeros((1, 3, 32, 32), np.uint8), "floating point numbers, got uint8"),
        "tensor": (torch.zeros(1, 3, 32, 32), "must be a numpy array of floating point numbers, got Tensor"),
    }.values(),
)
def test_other_batches_are_refused(path: Path, x: Any, told: str) -> None:
    with load(path) as net, pytest.raises(Error, match=told):
        net(x)


def test_run_takes_its_own_order_alone(path: Path) -> None:
    with load(path) as net:
        for bad in (batch(1), batch(1).transpose(0, 2, 3, 1), last_first(batch(1)).astype(np.float64)):
            with pytest.raises(Error, match=r"must be float32 \(N, 32, 32, 3\), contiguous, got"):
                net.run(bad)


def test_a_closed_engine_and_bad_threads_are_told(path: Path) -> None:
    net = load(path)
    net.close()
    net.close()
    with pytest.raises(Error, match=r"m\.lean: must be open, got a call after close\(\)"):
        net(batch(1))
    with pytest.raises(Error, match=r"m\.lean: threads must be 1 to 64, got 0"):
        load(path, threads=0)
    assert load(path).threads == engine.usable_cores()


def test_memory_that_is_not_there_is_told(made: tuple[Plan, Tensors], monkeypatch: pytest.MonkeyPatch) -> None:
    class Greedy:
        def run(self, batch: Any) -> Any:
            raise MemoryError

    monkeypatch.setattr(engine, "_runner", lambda *_: ("numpy", Greedy()))
    with pytest.raises(Error, match=r"its memory must be there, [0-9,]+ bytes for each of 2 images, got less"):
        Engine(*made)(batch(2))


# --- photos -----------------------------------------------------------------------------------------------------------


def test_photos_are_classified_as_the_training_reads_them(
    tmp_path: Path, path: Path, made: tuple[Plan, Tensors]
) -> None:
    files = [tmp_path / f"{i}.jpg" for i in range(70)]
    for i, file in enumerate(files[:5]):
        picture(file, (200, 40 * i, 90), i, side=40 + i)
    for file in files[5:]:
        file.write_bytes(files[0].read_bytes())
    seen: list[tuple[int, int]] = []
    with load(path) as net:
        found = net.classify(files, progress=lambda *at: seen.append(at))
        single = net.classify(str(files[1]), top=3)
    plan = made[0]
    assert plan.picture is not None
    for file, answer in zip(files[:6], found, strict=False):
        x = data.normalise(data.read_image(file, 32, 3)[None], plan.picture.mean, plan.picture.std)
        logits = by_torch(*made, x.permute(0, 2, 3, 1).contiguous().numpy(), torch.float64)
        wanted = torch.from_numpy(logits[0, 0, 0]).softmax(0)
        order = wanted.argsort(descending=True)
        assert answer.image == str(file)
        assert answer.classes == tuple(plan.classes[int(i)] for i in order)
        np.testing.assert_allclose(answer.probabilities, wanted[order], rtol=1e-4)
        assert sum(answer.probabilities) == pytest.approx(1)
        assert not any(answer.spread)
    assert len(found) == 70
    assert seen == [(64, 70), (70, 70)]
    assert [len(p.classes) for p in single] == [3]
    assert single[0].classes == found[1].classes[:3]
    assert found[0].probabilities == pytest.approx(found[69].probabilities)


def test_arrays_and_encoded_images_are_classified(tmp_path: Path, path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (40, 50, 3), np.uint8)
    picture(tmp_path / "a.png", (1, 2, 3), 0)
    with load(path) as net:
        found = net.classify([pixels, pixels[..., 0], (tmp_path / "a.png").read_bytes(), tmp_path / "a.png"])
        assert [p.image for p in found] == ["image 0", "image 1", "image 2", str(tmp_path / "a.png")]
        assert found[2].probabilities == found[3].probabilities
        assert net.classify(pixels)[0].classes == found[0].classes
        assert net.classify([]) == []


def test_unreadable_images_are_told_or_left_out(tmp_path: Path, path: Path) -> None:
    picture(tmp_path / "good.png", (1, 2, 3), 0)
    (tmp_path / "bad.png").write_bytes(b"\x89PNG\r\n")
    files = [tmp_path / "good.png", tmp_path / "bad.png", tmp_path / "none.png"]
    told: list[tuple[str, str]] = []
    with load(path) as net:
        assert len(net.classify(files, unreadable=lambda *one: told.append(one))) == 1
        assert [(os.path.basename(name), why) for name, why in told] == [
            ("bad.png", "no known image format"), ("none.png", "no such file"),
        ]  # fmt: skip
        with pytest.raises(Error, match="image: must be readable, got no such file from"):
            net.classify(tmp_path / "none.png")
        assert net.classify(tmp_path / "bad.png", unreadable=lambda *one: None) == []


def test_probabilities_of_a_network_that_ends_with_softmax_stay_as_they_are() -> None:
    builder = Builder((4, 4, 1))
    builder.linear(0, 3)
    logits = builder.plan(picture=Picture(4, "L", (0.5,), (0.5,)))
    builder.add("softmax", builder.steps[-1].output)
    ended = builder.plan(picture=logits.picture)
    pixels = np.arange(16, dtype=np.uint8).reshape(4, 4)
    a, b = (Engine(plan, builder.tensors).classify(pixels)[0] for plan in (logits, ended))
    assert a.classes == b.classes
    assert sorted(a.classes) == ["0", "1", "2"]
    assert a.probabilities == pytest.approx(b.probabilities, rel=1e-6)


def test_what_cannot_be_classified_is_told(path: Path, made: tuple[Plan, Tensors]) -> None:
    plan, tensors = made
    pixels = np.zeros((8, 8, 3), np.uint8)
    with pytest.raises(Error, match=r"network: to classify, it must read images .* got a file without a picture"):
        Engine(replace(plan, picture=None), tensors).classify(pixels)
    builder = Builder((8, 8, 3))
    builder.conv(0, 2, window=Window((3, 3)))
    maps = builder.plan(picture=Picture(8, "RGB", (0.5,) * 3, (0.5,) * 3))
    with pytest.raises(Error, match=r"put out a vector, got an output of shape \(2, 6, 6\)"):
        Engine(maps, builder.tensors).classify(pixels)
    with load(path) as net, pytest.raises(Error, match="top must be at least 1, got 0"):
        net.classify(pixels, top=0)


def test_a_batch_of_many_equals_its_images(path: Path) -> None:
    x = batch(9)
    with load(path) as net:
        np.testing.assert_allclose(net(x), np.concatenate([net(x[i : i + 1]) for i in range(9)]), rtol=1e-4, atol=1e-5)


def test_the_room_says_what_it_has() -> None:
    assert dir(runtime) == ["Engine", "Plan", "Prediction", "load"]
    with pytest.raises(AttributeError, match="has no attribute 'laod'"):
        _ = runtime.laod
    assert Step in (type(step) for step in mobilenet(0.25, 32, 10)[0].steps)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["floats", "bytes"])
def test_ten_threads_for_a_minute(tmp_path: Path, kind: str) -> None:
    plan, tensors = mobilenet(0.25, 64, 10)
    write(tmp_path / "m.lean", *((plan, tensors) if kind == "floats" else in_bytes(plan, tensors, floats=0)))
    inputs = [np.random.default_rng(i).standard_normal((1 + i % 3, 3, 64, 64)).astype(np.float32) for i in range(10)]
    wrong: list[int] = []
    calls = [0] * 10
    with load(tmp_path / "m.lean") as net:
        alone = [net(x) for x in inputs]
        end = time.monotonic() + 60

        def work(i: int) -> None:
            while time.monotonic() < end and not wrong:
                calls[i] += 1
                if not np.array_equal(net(inputs[i]), alone[i]):
                    wrong.append(i)

        workers = [threading.Thread(target=work, args=(i,)) for i in range(10)]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()
    assert not wrong
    assert min(calls) > 10
