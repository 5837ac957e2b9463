"""The build backend: scikit-build-core, which compiles the native library; pure Python where nothing compiles.

scikit-build-core itself falls back where CMake runs and fails (pyproject.toml, ``if.failed``). Two cases remain for
this file: without a compiler no CMake is asked for, and a CMake that cannot be had is no reason to fail.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable

from scikit_build_core import build
from scikit_build_core.build import build_sdist, get_requires_for_build_sdist
from scikit_build_core.errors import ScikitBuildError

__all__ = [
    "build_editable",
    "build_sdist",
    "build_wheel",
    "get_requires_for_build_editable",
    "get_requires_for_build_sdist",
    "get_requires_for_build_wheel",
]

Settings = dict[str, str | list[str]] | None


def _has_compiler() -> bool:
    chosen = os.environ.get("CXX", "").split()[:1]
    return os.name == "nt" or any(shutil.which(name) for name in [*chosen, "c++", "g++", "clang++"])


def get_requires_for_build_wheel(settings: Settings = None) -> list[str]:
    """What a wheel needs: CMake too, where there is a compiler for it to call."""
    return build.get_requires_for_build_wheel(settings) if _has_compiler() else []


def get_requires_for_build_editable(settings: Settings = None) -> list[str]:
    """What an editable installation needs."""
    return build.get_requires_for_build_editable(settings) if _has_compiler() else []


def build_wheel(directory: str, settings: Settings = None, metadata: str | None = None) -> str:
    """Build a wheel, with native code if that can be."""
    return _or_pure(build.build_wheel, directory, settings, metadata)


def build_editable(directory: str, settings: Settings = None, metadata: str | None = None) -> str:
    """Build an editable wheel, with native code if that can be."""
    return _or_pure(build.build_editable, directory, settings, metadata)


def _or_pure(make: Callable[..., str], directory: str, settings: Settings, metadata: str | None) -> str:
    try:
        return make(directory, settings, metadata)
    except ScikitBuildError as error:
        print(f"leanconv: no native code ({error or type(error).__name__}); building pure Python")
        return make(directory, {**(settings or {}), "wheel.cmake": "false"}, metadata)
