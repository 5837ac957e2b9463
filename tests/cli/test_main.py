"""The command as a whole: help, versions, exit codes, and what is imported."""

from __future__ import annotations

import subprocess
import sys
from importlib import import_module

import pytest

from leanconv import cli
from leanconv.cli import COMMANDS, main
from leanconv.errors import Error

Capture = pytest.CaptureFixture[str]


def test_help_lists_every_command_and_imports_no_torch() -> None:
    code = (
        "import sys; from leanconv.cli import main; code = main(['--help']);"
        "sys.exit(code or (7 if {'torch', 'numpy', 'rich', 'yaml'} & set(sys.modules) else 0))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    for name, (_, told) in COMMANDS.items():
        assert name in done.stdout
        assert told in done.stdout


def test_help_of_a_command_imports_no_torch() -> None:
    code = (
        "import sys; from leanconv.cli import main;"
        "codes = [main([name, '--help']) for name in ('train', 'predict', 'demo')];"
        "sys.exit(any(codes) or 7 * ('torch' in sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "examples:" in done.stdout


@pytest.mark.parametrize("name", list(COMMANDS))
def test_every_command_has_its_module_and_its_help(name: str, capsys: Capture) -> None:
    module = import_module(COMMANDS[name][0])
    assert module.__doc__
    assert main([name, "--help"]) == 0
    assert f"usage: leanconv {name}" in capsys.readouterr().out


def test_version(capsys: Capture) -> None:
    import leanconv

    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"leanconv {leanconv.__version__}\n"


def test_no_command_prints_the_help_and_is_a_usage_error(capsys: Capture) -> None:
    assert main([]) == 2
    assert "commands:" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["trian"], "got 'trian' (did you mean train?)"),
        (["xyz"], "the command must be one of train, data, "),
        (["train", "--colour"], "unrecognized arguments: --colour"),
        (["train", "--epochs"], "--epochs: expected one argument"),
        (["predict", "--top", "many"], "invalid int value: 'many'"),
        (["demo", "--seeds", "0"], "demo: --seeds must be at least 1, got 0"),
    ],
)
def test_usage_errors_are_one_sentence_and_exit_2(words: list[str], sentence: str, capsys: Capture) -> None:
    assert main(words) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("leanconv: error: ")
    assert sentence in err
    assert err.count("\n") == 1


def test_errors_interrupts_and_codes_become_exit_codes(monkeypatch: pytest.MonkeyPatch, capsys: Capture) -> None:
    class Command:
        outcome: object = 1

        @staticmethod
        def configure(parser: object) -> None:
            """No arguments."""

        @classmethod
        def run(cls, arguments: object) -> object:
            if isinstance(cls.outcome, BaseException):
                raise cls.outcome
            return cls.outcome

    monkeypatch.setattr(cli, "import_module", lambda name: Command)
    assert main(["train"]) == 1
    Command.outcome = Error("thing: must be, got nothing")
    assert main(["train"]) == 2
    assert capsys.readouterr().err == "leanconv: error: thing: must be, got nothing\n"
    Command.outcome = KeyboardInterrupt()
    assert main(["train"]) == 130
    Command.outcome = RuntimeError("a fault of ours keeps its traceback")
    with pytest.raises(RuntimeError):
        main(["train"])
