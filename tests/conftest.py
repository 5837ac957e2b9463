"""Settings of the whole suite: the slow tests, the rows of docs/source.md, and threads under xdist."""

from __future__ import annotations

import os
import sys

import pytest


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--slow", action="store_true", help="run the slow tests too (also: LEANCONV_SLOW=1)")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    for item in items:
        rows = [row for marker in item.iter_markers("source") for row in marker.args]
        if rows:
            item.user_properties.append(("source", rows))  # travels with each report, from xdist's workers too
    if config.getoption("--slow") or os.environ.get("LEANCONV_SLOW", "0") not in ("", "0"):
        return
    slow = [item for item in items if item.get_closest_marker("slow")]
    if slow:
        config.hook.pytest_deselected(items=slow)
        items[:] = [item for item in items if not item.get_closest_marker("slow")]


def pytest_runtest_setup(item: pytest.Item) -> None:
    """One thread in each worker of xdist, which are as many as there are cores."""
    torch = sys.modules.get("torch")
    if "PYTEST_XDIST_WORKER" in os.environ and torch is not None and torch.get_num_threads() != 1:
        torch.set_num_threads(1)
