"""The code blocks of each method card, of the README and the examples run."""

import re
from pathlib import Path

import pytest
import torch

from leanconv import techniques

ROOT = Path(__file__).parents[1]
BLOCK = re.compile(r"^```python\n(.*?)^```", re.MULTILINE | re.DOTALL)
CARDS = {t.NAME: Path(t.__file__).with_name("README.md") for t in techniques.all()}  # type: ignore[attr-defined]


@pytest.mark.parametrize("name", CARDS)
def test_method_card_runs(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = CARDS[name].read_text()
    blocks = BLOCK.findall(text)
    assert blocks, f"the method card of {name} has no code block"
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    namespace: dict[str, object] = {}
    for number, block in enumerate(blocks):
        exec(compile(block, f"{name}/README.md block {number}", "exec"), namespace)


@pytest.mark.parametrize("name", CARDS)
def test_method_card_is_complete(name: str) -> None:
    text = CARDS[name].read_text().lower()
    for section in ("how to use", "suggested values", "what to expect", "no effect when", "deviations", "references"):
        assert section in text, f"the method card of {name} has no section {section!r}"


@pytest.mark.parametrize("page", ["README.md", "README.zh-CN.md"])
def test_readme_blocks_run(page: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    blocks = BLOCK.findall((ROOT / page).read_text())
    assert blocks
    monkeypatch.chdir(tmp_path)
    namespace: dict[str, object] = {}
    for number, block in enumerate(blocks):
        exec(compile(block, f"{page} block {number}", "exec"), namespace)
