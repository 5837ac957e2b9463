"""``python -m leanconv`` is the command ``leanconv``."""

import sys

from leanconv.cli import main

sys.exit(main())
