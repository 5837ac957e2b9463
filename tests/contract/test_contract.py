"""Every technique holds every common check; a new folder in techniques/ is tested here with no edit."""

from leanconv import techniques
from leanconv.contract import Technique
from leanconv.techniques import batchnorm, dropout, l2, separable
from leanconv.testing import Check, parametrize_with_checks

# The type checker proves that each folder fits the protocol.
_FOUR: tuple[Technique, ...] = (dropout, batchnorm, l2, separable)


@parametrize_with_checks(techniques.all())
def test_contract(check: Check) -> None:
    check()


def test_all_finds_every_folder_in_order() -> None:
    assert [t.NAME for t in techniques.all()] == ["separable", "batchnorm", "dropout", "l2"]
