"""A process that works for a study: tasks come as lines of JSON on stdin, results leave the same way.

``python -m leanconv.study.worker SOURCE``. What anything else prints goes to stderr. The end of stdin, which the end of
the driver is too, ends it.
"""

from __future__ import annotations

import json
import os
import sys

from leanconv.errors import Error
from leanconv.study.store import plain
from leanconv.study.work import Images, Task, execute
from leanconv.training import Stopped

__all__ = ["main"]


def main() -> int:
    """Work until there is nothing more."""
    from leanconv.allocator import tune_allocator

    tune_allocator()
    images = Images(sys.argv[1])
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    for line in sys.stdin:
        try:
            row = execute(Task(**json.loads(line)), images)
        except Stopped as stopped:
            return stopped.code
        except Error as error:
            answer = {"error": str(error)}
        else:
            answer = {"row": plain(vars(row))}
        print(json.dumps(answer), file=answers, flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
