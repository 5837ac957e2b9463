"""A process that works for a study: tasks come as lines of JSON on stdin, results leave the same way.

``python -m leanconv.study.worker SOURCE [--sent]``; with ``--sent`` SOURCE is a folder of images that were read
elsewhere. What anything else prints goes to stderr. The end of stdin ends it, and so does the end of the driver, at
once: whoever goes on with the study must not find it still writing.
"""

from __future__ import annotations

import json
import os
import sys
import threading
import time

from leanconv.errors import Error
from leanconv.study.store import plain
from leanconv.study.work import Images, Sent, Task, execute
from leanconv.training import Stopped

__all__ = ["main"]


def _watch(driver: int) -> None:
    while os.getppid() == driver:
        time.sleep(0.2)
    os._exit(1)


def main() -> int:
    """Work until there is nothing more."""
    from leanconv.allocator import tune_allocator

    threading.Thread(target=_watch, args=(os.getppid(),), daemon=True).start()
    tune_allocator()
    images = Sent(sys.argv[1]) if "--sent" in sys.argv[2:] else Images(sys.argv[1])
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
