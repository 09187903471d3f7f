"""What a command prints with quiet=true, and where its words are coloured."""

import io
import sys
import warnings
from pathlib import Path

import pytest
import yaml
from support.scripts import TINY, assert_refused, call

import sample
import train
from diffusion.terminal import streams

RUN = Path("lightning_logs", "digits", "version_0")


class Terminal(io.StringIO):
    """A stream that says it is a terminal."""

    def isatty(self) -> bool:
        return True


def test_a_quiet_command_prints_results_warnings_and_errors_alone(capsys: pytest.CaptureFixture[str]) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        with streams.quieted():
            print("a note")
            print("a bar", file=sys.stderr)
            streams.result("a path")
            warnings.warn("it is late", stacklevel=1)
            streams.problem("error: it is over")
    streams.result("another")
    assert capsys.readouterr() == ("a path\nanother\n", "warning: it is late\nerror: it is over\n")


def test_an_exception_ends_the_quiet(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(ValueError, match="wrong"), streams.quieted():
        raise ValueError("wrong")
    assert not streams.is_quiet()
    print("heard")
    assert capsys.readouterr().out == "heard\n"


def test_a_quiet_run_prints_its_folder_and_a_quiet_drawing_its_file(tmp_path: Path) -> None:
    trained = call(train, tmp_path, *TINY, "accelerator=cpu", "preview_every=0", "quiet=true")
    assert trained == (0, f"{RUN}\n", "")
    assert "quiet" not in yaml.safe_load((tmp_path / RUN / "config.yaml").read_text())
    drawn = call(sample, tmp_path, "ckpt=last", "n=1", "steps=2", "out=x.png", "accelerator=cpu", "quiet=true")
    assert drawn == (0, "x.png\n", "")
    aloud = call(sample, tmp_path, "ckpt=last", "n=1", "steps=2", "out=y.png", "seed=3", "accelerator=cpu")
    assert aloud.out == "y.png\n"
    assert aloud.err.splitlines()[-1] == "next: seed=4 draws others; python evaluate.py ckpt=last scores the model"
    assert_refused(call(sample, tmp_path, "ckpt=last", "n=-1", "quiet=true"), "n must be at least 1")


def test_quiet_is_true_or_false(tmp_path: Path) -> None:
    assert_refused(call(train, tmp_path, "quiet=rather"), "quiet must be true or false, got 'rather'")


def test_words_are_coloured_on_a_terminal_alone_and_not_where_no_color_is_set(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setenv("TERM", "xterm")
    assert streams.coloured("error", Terminal()) == "\x1b[31merror\x1b[0m"
    assert streams.coloured("warning", Terminal()) == "\x1b[33mwarning\x1b[0m"
    assert streams.coloured("saved", Terminal()) == "saved"
    assert streams.coloured("error", io.StringIO()) == "error"
    monkeypatch.setenv("NO_COLOR", "1")
    assert streams.coloured("error", Terminal()) == "error"
    monkeypatch.delenv("NO_COLOR")
    monkeypatch.setenv("TERM", "dumb")
    assert streams.coloured("error", Terminal()) == "error"
