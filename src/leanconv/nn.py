"""The layers of all techniques, and what belongs to them, in one place: ``from leanconv import nn``.

Nothing is defined here. Each name comes from the folder of its technique under ``leanconv.techniques``, whose method card
says how to use it.
"""


