"""Runs as a program of its own, since Ray takes over its process: what the tests of the cluster look at, as JSON.

``ray_driver.py killed`` has work done on three nodes, one of which is killed meanwhile; ``trained IMAGES`` trains a
study on the two others afterwards; ``alone IMAGES`` trains it on Ray on this machine alone; ``noops N`` has tasks done
that do nothing; ``refused`` one that cannot be done; ``dies`` one that ends its process.
"""

from __future__ import annotations

import json
import os
import sys
import threading
import time
from pathlib import Path
from typing import Any

from leanconv import recipe
from leanconv.errors import Error
from leanconv.study.cluster import Ray
from leanconv.study.design import design
from leanconv.study.run import Study
from leanconv.study.store import Store
from leanconv.study.task import Task
from leanconv.study.work import Images

QUICK = recipe.override(
    recipe.only(recipe.load("demo"), ["batchnorm", "dropout"]),
    epochs=2,
    batch=32,
    **{"model.options.width": 4, "training.warmup": 0.0, "training.threads": 1},
)


def noop(task: dict[str, Any], images: Any, version: str) -> Any:
    values = {"kind": task["kind"], "arm": task["arm"], "seed": task["seed"], "values": {"test": 0.5}}
    return {**values, "worker": f"{os.getppid()}:{os.getpid()}"}, None


def marking(place: Path) -> Any:
    """Work that takes a while and says first on which node it began."""

    def slowly(task: dict[str, Any], images: Any, version: str) -> Any:
        import ray

        node = ray.get_runtime_context().get_node_id()
        (place / f"{node}-{task['seed']}").touch()
        time.sleep(0.5)
        return {"kind": task["kind"], "arm": task["arm"], "seed": task["seed"], "worker": node}, None

    return slowly


def refused(task: dict[str, Any], images: Any, version: str) -> Any:
    raise Error(f"study: {task['arm']} must not be asked for, got it")


def dies(task: dict[str, Any], images: Any, version: str) -> Any:
    os._exit(3)


def tasks(count: int) -> list[Task]:
    return [Task("run", "arm", seed, QUICK.to_dict()) for seed in range(count)]


def main() -> dict[str, Any]:
    what, *more = sys.argv[1:]
    images = Images(more[0] if more else "demo")
    if what == "refused":
        return _told(Ray(images, [], do=refused))
    if what == "dies":
        return _told(Ray(images, [], do=dies))
    if what == "noops":
        engine = Ray(images, [], do=noop)
        list(engine.run(tasks(50)))
        start = time.perf_counter()
        rows = list(engine.run(tasks(int(more[0]))))
        took = time.perf_counter() - start
        engine.close()
        return {"seeds": sorted(row.seed for row in rows), "seconds": took}
    if what == "alone":
        return _study(None, images)
    return _killed(images, trained=what == "trained")


def _told(engine: Ray) -> dict[str, Any]:
    try:
        list(engine.run(tasks(1)))
    except Error as error:
        return {"error": str(error)}
    finally:
        engine.close()
    return {}


def _study(address: str | None, images: Images) -> dict[str, Any]:
    made = design(QUICK, "add-one", sides=False)
    Path("runs/s").mkdir(parents=True, exist_ok=True)
    with Store("runs/s/study.db") as store:
        engine = Ray(images, [arm.recipe for arm in made.every], address)
        try:
            study = Study("s", made, images, store)
            study.work(engine, study.pilots())
            study.work(engine, study.trainings(2))
            study.times()
        finally:
            engine.close()
        rows = store.rows()
    return {
        "rows": [[row.kind, row.arm, row.seed, row.status] for row in rows],
        "models": sorted(str(p) for p in Path("runs").rglob("model.safetensors")),
    }


def _killed(images: Images, trained: bool) -> dict[str, Any]:
    from ray.cluster_utils import Cluster

    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1})
    lost = cluster.add_node(num_cpus=1)
    cluster.add_node(num_cpus=1)
    cluster.wait_for_nodes()
    place = Path("begun").resolve()
    place.mkdir()
    engine = Ray(images, [], cluster.address, do=marking(place))
    before = engine.workers

    def kill() -> None:
        while not list(place.glob(f"{lost.node_id}-*")):
            time.sleep(0.02)
        cluster.remove_node(lost, allow_graceful=False)

    killer = threading.Thread(target=kill, daemon=True)
    killer.start()
    rows = list(engine.run(tasks(40)))
    killer.join(60)
    engine.close()
    told = {
        "workers": before,
        "lost": lost.node_id,
        "begun": [path.name.rpartition("-")[::2] for path in place.iterdir()],
        "rows": sorted((row.seed, row.worker) for row in rows),
    }
    if trained:
        told["study"] = _study(cluster.address, images)
    cluster.shutdown()
    return told


if __name__ == "__main__":
    print(json.dumps(main()))
