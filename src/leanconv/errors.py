"""The one error that leanconv raises on purpose.

Every message is one sentence: the subject, the rule, and what was got, as in
``Dropout: p must satisfy 0 <= p < 1, got p=1.5``. The commands print that sentence and leave with exit code 2.
"""


class Error(ValueError):
    """Bad input, told in one sentence (subject, rule, what was got). A ``ValueError``, so usual handlers catch it."""
