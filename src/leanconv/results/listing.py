"""What runs there are."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from leanconv.errors import Error
from leanconv.results.records import Run, read_run

__all__ = ["Listed", "runs_below"]


@dataclass(frozen=True)
class Listed:
    """A run's folder.

    Attributes:
        folder: of the run.
        changed: seconds since 1970, when its record was written last.
        run: what the record says; None where it cannot be read.
        reason: why not.
    """

    folder: Path
    changed: float
    run: Run | None
    reason: str = ""


def runs_below(root: str | Path) -> list[Listed]:
    """Every folder below ``root`` (or ``root`` itself) with a ``run.json``, the newest first."""
    found = []
    for path in Path(root).glob("**/run.json"):
        try:
            found.append(Listed(path.parent, path.stat().st_mtime, read_run(path.parent)))
        except FileNotFoundError:  # removed meanwhile
            continue
        except Error as error:
            found.append(Listed(path.parent, path.stat().st_mtime, None, str(error)))
    return sorted(found, key=lambda one: (-one.changed, str(one.folder)))
