"""Interactive writing in a terminal: a process of its own, whose screen an emulator shows."""

from __future__ import annotations

import fcntl
import importlib
import io
import multiprocessing
import os
import pty
import re
import select
import signal
import struct
import sys
import termios
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from charlm.errors import UsageError
from charlm.inference.language_model import LanguageModel
from charlm.inference.sampling_options import SamplingOptions
from charlm.models.recurrent import GRU
from charlm.text.characters import visible
from charlm.text.vocab import Vocab
from tests.helpers import of_extra

pyte = of_extra("dev", "pyte")
of_extra("interactive", "prompt_toolkit")

from charlm.inference.interactive.app import run  # noqa: E402  after the skip
from charlm.inference.interactive.screen import Editor, width_of, wrap  # noqa: E402
from charlm.inference.interactive.session import Session  # noqa: E402

LETTERS = " ,abcdefghijklmnop字母"
LENGTH = 30
BAR = "█*[▏▎▍▌▋▊▉]?"
KEYS = {"word": "\x1b[1;3C", "accept": "\t", "right": "\x1b[C", "left": "\x1b[D", "another": "\x0e", "previous": "\x10"}
KEYS |= {"hotter": "\x1b[1;3A", "colder": "\x1b[1;3B", "undo": "\x1a", "redo": "\x19", "end": "\x03", "eof": "\x04"}
KEYS |= {
    "up": "\x1b[A",
    "down": "\x1b[B",
    "home": "\x1b[H",
    "start": "\x1b[1;5H",
    "finish": "\x1b[1;5F",
    "undo2": "\x1f",
}
KEYS |= {"backspace": "\x7f", "delete word": "\x17", "escape": "\x1b"}


def tiny() -> LanguageModel:
    """An untrained model, sure enough of itself to prefer some characters."""
    torch.manual_seed(0)
    vocab = Vocab("".join(sorted(LETTERS)))
    network = GRU(len(vocab), hidden_size=12, embedding_size=6).eval()
    for parameter in network.parameters():
        parameter.data *= 2
    return LanguageModel(network, vocab, {"lowercase": False})


class Broken(LanguageModel):
    """Fails once the text ends with a comma."""

    def stream(self, prompt: str = "", length: int = 500, **options: Any) -> Iterator[str]:
        yield "a"
        if prompt.endswith(","):
            raise ValueError("no memory\nleft")
        yield "b"


class Gated(LanguageModel):
    """Writes nothing until there is a file."""

    def stream(self, prompt: str = "", length: int = 500, **options: Any) -> Iterator[str]:
        gate = Path(os.environ["GATE"])
        with gate.with_suffix(".asked").open("a") as asked:
            asked.write(f"{prompt}\n")
        while not gate.exists():
            time.sleep(0.01)
        return super().stream(prompt, length, **options)


def child(kind: str = "LanguageModel", prompt: str = "", **options: Any) -> None:
    """What sample.py will do."""
    model = tiny()
    model.__class__ = {"LanguageModel": LanguageModel, "Broken": Broken, "Gated": Gated}[kind]
    text = run(model, prompt, SamplingOptions(**{"seed": 1, "length": LENGTH, **options}))
    sys.stdout.buffer.write(f"<{text}>".encode())
    sys.stdout.flush()


def in_terminal(terminal: str, out: Path, environment: dict[str, str], options: dict[str, Any]) -> None:
    """`child` in a process that begins here, with a terminal as its stdin and stderr, and a file as its stdout."""
    os.setsid()
    number = os.open(terminal, os.O_RDWR)
    text = number if "STDOUT" in environment else os.open(out, os.O_WRONLY | os.O_CREAT)
    for stream, of in ((0, number), (1, text), (2, number)):
        os.dup2(of, stream)
    sys.stdin, sys.stdout, sys.stderr = open(0, closefd=False), open(1, "w", closefd=False), open(2, "w", closefd=False)
    for name in ("NO_COLOR", "PROMPT_TOOLKIT_COLOR_DEPTH"):
        os.environ.pop(name, None)
    os.environ.update({"TERM": "xterm-256color", **environment})
    child(**options)


class Terminal:
    """A process, its terminal, and what is on the screen."""

    def __init__(self, process: Any, terminal: int, columns: int, rows: int, out: Path) -> None:
        self.process, self.terminal, self.out = process, terminal, out
        self.screen = pyte.Screen(columns, rows)
        self._stream = pyte.ByteStream(self.screen)
        self.bytes = b""

    def press(self, *keys: str) -> None:
        """Names of keys, or text to type."""
        for key in keys:
            os.write(self.terminal, KEYS.get(key, key).encode())

    def until(self, happened: Callable[[], bool]) -> None:
        """Read what the process writes until something happened."""
        deadline = time.monotonic() + 60
        while not happened():
            assert time.monotonic() < deadline, "\n".join(self.screen.display)
            if select.select([self.terminal], [], [], 0.02)[0]:
                try:
                    data = os.read(self.terminal, 1 << 16)
                except OSError:  # the process has ended
                    continue
                self.bytes += data
                self._stream.feed(data)

    def resize(self, columns: int, rows: int) -> None:
        self.screen.resize(rows, columns)
        set_size(self.terminal, columns, rows)

    def shows(self, *parts: str) -> None:
        self.until(lambda: all(any(part in line for line in self.screen.display) for part in parts))

    def hides(self, part: str) -> None:
        self.until(lambda: not any(part in line for line in self.screen.display))

    def in_style(self, **style: object) -> str:
        """All characters of the editor, below which the rest of the screen is reversed, that have this style."""
        found = ""
        for row in range(self.screen.lines):
            cells = [self.screen.buffer[row][column] for column in range(self.screen.columns)]
            if cells[0].reverse:
                break
            cells = cells[1 : next((i for i, cell in enumerate(cells) if cell.data == "│"), len(cells))]
            found += "".join(c.data for c in cells if all(getattr(c, k) == v for k, v in style.items()))
        return found

    def writes(self, typed: str, suggestion: str) -> None:
        """Wait until the editor shows the text, then the suggestion, with the cursor between them."""

        def happened() -> bool:
            cursor = self.screen.buffer[self.screen.cursor.y][self.screen.cursor.x]
            follows = not suggestion or (cursor.italics and cursor.data == suggestion[0])
            text = self.in_style(italics=False).rstrip()
            return text == typed.rstrip() and self.in_style(italics=True) == suggestion and follows

        self.until(happened)

    def ends(self, text: str) -> None:
        """Wait for the end, and assert that the text went to stdout."""
        self.until(lambda: self.process.exitcode is not None)
        assert self.process.exitcode == 0
        assert self.out.read_text() == f"<{text}>"
        assert b"Warning" not in self.bytes and b"Traceback" not in self.bytes


def set_size(terminal: int, columns: int, rows: int) -> None:
    fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))


@contextmanager
def opened(
    tmp_path: Path, size: tuple[int, int] = (100, 24), env: dict[str, str] | None = None, **options: Any
) -> Iterator[Terminal]:
    """A process in a terminal. It is forked from one that has loaded PyTorch, which takes seconds."""
    terminal, other = pty.openpty()
    set_size(terminal, *size)
    processes = multiprocessing.get_context("forkserver")
    processes.set_forkserver_preload([__name__])
    arguments = os.ttyname(other), tmp_path / "text", env or {}, options
    process = processes.Process(target=in_terminal, args=arguments, daemon=True)
    process.start()
    try:
        yield Terminal(process, terminal, *size, tmp_path / "text")
    finally:
        process.kill()
        process.join()
        os.close(other)
        os.close(terminal)


def expected(prompt: str, temperature: float = 0.8, seed: int = 1) -> str:
    return tiny().generate(prompt, LENGTH, temperature=temperature, seed=seed, unknown="skip")


def probabilities(text: str) -> list[tuple[str, float]]:
    """What the network itself gives after `text`, the most probable first."""
    model = tiny()
    ids = torch.tensor([model.vocab.encode(text).tolist()])
    with torch.no_grad():
        found = model.network(ids).logits[0, -1].double().softmax(-1)
    return sorted(zip(model.vocab.chars, found.tolist(), strict=True), key=lambda each: -each[1])


def test_typing_accepting_undoing_and_leaving(tmp_path: Path) -> None:
    with opened(tmp_path, prompt="ab") as terminal:
        first = expected("ab")
        terminal.writes("ab", first)
        terminal.shows("temperature 0.8  seed 1  2 characters", "Tab accept")
        endings = [(ending.text or "(it ends here)", ending.probability) for ending in tiny().complete("ab", 9)]
        for text, probability in [*probabilities("ab")[:9], *endings]:
            row = rf"│ {re.escape(visible(text))} +{BAR} +{probability:.1%}"
            terminal.until(lambda row=row: any(re.search(row, line) for line in terminal.screen.display))
        grey = terminal.in_style(italics=True, fg="808080")
        assert grey == first

        terminal.press(first[0])  # typed as suggested: the rest stays
        terminal.writes("ab" + first[0], first[1:])
        best, probability = probabilities("ab" + first[0])[0]
        terminal.shows(f" {visible(best)} ", f"{probability:.1%}")
        terminal.press("word")
        word = re.match(r"\s*([a-p]+|[字母]|,+)", first[1:])[0]
        accepted = "ab" + first[0] + word
        terminal.writes(accepted, first[1 + len(word) :])
        terminal.press("accept")
        whole = "ab" + first
        terminal.writes(whole, expected(whole, seed=2))
        terminal.shows(f"seed 2  {len(whole)} characters")
        terminal.press("undo")
        terminal.writes(accepted, first[1 + len(word) :])
        terminal.press("undo2", "undo", "undo")
        terminal.writes("ab", first)
        terminal.shows("nothing to undo")
        terminal.press("redo", "redo", "redo")
        terminal.writes(whole, expected(whole, seed=2))
        terminal.press("undo", "undo", "undo", "end")
        terminal.ends("ab")


def test_another_suggestion_and_another_temperature(tmp_path: Path) -> None:
    with opened(tmp_path) as terminal:
        terminal.writes("", expected(""))
        terminal.press("another")
        terminal.writes("", expected("", seed=2))
        terminal.shows("seed 2")
        terminal.press("hotter", "hotter")
        terminal.writes("", expected("", 1.0, 2))
        terminal.shows("temperature 1  seed 2")
        terminal.press("previous", "colder")
        terminal.writes("", expected("", 0.9, 1))
        terminal.press("right")
        text = expected("", 0.9, 1)
        terminal.writes(text, expected(text, 0.9, 2))
        terminal.press("eof")
        terminal.ends(text)


def test_other_options_of_decoding_hold_for_suggestions(tmp_path: Path) -> None:
    with opened(tmp_path, prompt="ab", top_k=2, repetition_penalty=3.0) as terminal:
        options = {"top_k": 2, "repetition_penalty": 3.0, "seed": 1}
        terminal.writes("ab", tiny().generate("ab", LENGTH, temperature=0.8, **options))
        terminal.press("end")
        terminal.ends("ab")


def test_editing_in_the_middle_shows_no_suggestion_but_the_candidates_there(tmp_path: Path) -> None:
    with opened(tmp_path, prompt="abc def") as terminal:
        terminal.writes("abc def", expected("abc def"))
        terminal.press("left", "left")
        terminal.writes("abc def", "")
        assert (terminal.screen.cursor.y, terminal.screen.cursor.x) == (0, 6)
        best, probability = probabilities("abc d")[0]
        terminal.until(
            lambda: bool(re.search(rf"│ {visible(best)} +{BAR} +{probability:.1%}", terminal.screen.display[1]))
        )
        terminal.press("accept")
        terminal.shows("suggestions are made at the end of the text")
        terminal.press("delete word", "gh", "backspace", "finish")
        terminal.writes("abc gef", expected("abc gef"))
        terminal.press("\x1b[200~one\r\n字\x1b[201~")
        terminal.shows("abc gefone", "12 characters")
        terminal.press("up", "home", "p", "\x18", "\x1bq", "end")  # Ctrl-X means nothing
        terminal.ends("pqabc gefone\n字")


def test_unknown_characters_are_marked_and_left_out(tmp_path: Path) -> None:
    with opened(tmp_path, prompt="ab") as terminal:
        terminal.press("é")
        terminal.writes("abé", expected("ab"))
        terminal.shows("the model never saw 'é': it reads the text without it")
        assert terminal.in_style(underscore=True, fg="red") == "é"
        terminal.press("\r")
        terminal.until(lambda: terminal.in_style(underscore=True) == "é⏎")
        terminal.press("\x1b[200~\x07\x1b[201~")
        terminal.until(lambda: terminal.in_style(underscore=True) == "é⏎·")
        terminal.press("ab")
        terminal.until(lambda: terminal.in_style(italics=True) == expected("abab"))
        terminal.press("end")
        terminal.ends("abé\n\x07ab")


def test_small_terminals_and_other_sizes(tmp_path: Path) -> None:
    text = " ".join("abcdefghijklmnop"[:n] for n in range(1, 17)) * 4 + " 字母"
    with opened(tmp_path, prompt=text, size=(40, 10)) as terminal:
        found = probabilities(text)
        terminal.shows(f" {visible(found[0][0])} {found[0][1]:.0%}  {visible(found[1][0])} {found[1][1]:.0%}", "字母")
        assert not any("│" in line for line in terminal.screen.display)
        assert all(len(line.rstrip()) <= 40 for line in terminal.screen.display)
        terminal.until(lambda: 0 < terminal.screen.cursor.y < 7)
        terminal.press("start")
        terminal.until(lambda: terminal.screen.display[0].startswith(" a ab abc") and terminal.screen.cursor.y == 0)
        terminal.resize(100, 24)
        terminal.shows("│ next character", "字")
        terminal.resize(20, 5)
        terminal.hides("│")
        terminal.shows("a ab abc abcd", "Tab accept  ^C end")
        terminal.resize(1, 1)
        terminal.press("x")
        terminal.resize(60, 8)
        terminal.shows("xa ab abc")
        terminal.press("end")
        terminal.ends("x" + text)


def test_no_colours(tmp_path: Path) -> None:
    with opened(tmp_path, prompt="abx", env={"NO_COLOR": "1"}) as terminal:
        terminal.writes("abx", expected("abx"))
        assert terminal.in_style(underscore=True) == "x"
        cells = [cell for row in terminal.screen.buffer.values() for cell in row.values()]
        assert {cell.fg for cell in cells} == {cell.bg for cell in cells} == {"default"}
        terminal.press("end")
        terminal.ends("abx")


def test_an_error_of_the_model_loses_nothing(tmp_path: Path) -> None:
    with opened(tmp_path, kind="Broken") as terminal:
        terminal.writes("", "ab")
        terminal.press("c", ",")
        terminal.shows("the model failed, the text is safe: no memory")
        terminal.press("d")
        terminal.writes("c,d", "ab")
        terminal.hides("failed")
        terminal.press("end")
        terminal.ends("c,d")


def test_a_busy_model_keeps_no_key_waiting_and_earlier_suggestions_are_dropped(tmp_path: Path) -> None:
    gate = tmp_path / "gate"
    with opened(tmp_path, kind="Gated", env={"GATE": str(gate)}) as terminal:
        terminal.shows("writing …")
        asked = gate.with_suffix(".asked")
        terminal.until(asked.exists)
        for character in "cab":
            terminal.press(character)
        terminal.writes("cab", "")
        terminal.press("accept")
        terminal.shows("nothing is suggested yet")
        gate.touch()
        terminal.writes("cab", expected("cab"))
        terminal.hides("writing …")
        assert asked.read_text().split("\n") == ["", "cab", ""]  # what was to follow "c" and "ca" was never begun
        terminal.press("end")
        terminal.ends("cab")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGINT])
def test_a_signal_ends_it_like_a_key(tmp_path: Path, number: int) -> None:
    with opened(tmp_path, prompt="ab") as terminal:
        terminal.press("c")
        terminal.writes("abc", expected("abc"))
        os.kill(terminal.process.pid, number)
        terminal.ends("abc")


def test_the_interface_may_be_on_stdout(tmp_path: Path) -> None:
    with opened(tmp_path, prompt="ab", env={"STDOUT": "terminal"}) as terminal:
        terminal.writes("ab", expected("ab"))
        terminal.press("end")
        terminal.until(lambda: terminal.process.exitcode is not None and terminal.bytes.endswith(b"<ab>"))


@pytest.mark.parametrize("real", ["stdin", "stdout", "stderr", "dumb"])
def test_without_a_terminal_there_is_one_sentence(real: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Streams that say that they are terminals, as far as they are `real`."""
    for name in ("stdin", "stdout", "stderr"):
        stream = io.StringIO()
        stream.isatty = lambda name=name: real in (name, "dumb") or (real, name) == ("stdout", "stderr")
        monkeypatch.setattr(sys, name, stream)
    monkeypatch.setenv("TERM", "dumb" if real == "dumb" else "xterm")
    with pytest.raises(UsageError, match="--interactive needs a terminal: its keyboard as stdin"):
        run(tiny(), "", SamplingOptions())


def test_without_the_extra_there_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in sys.modules if name.startswith("prompt_toolkit")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "prompt_toolkit", None)
    monkeypatch.delitem(sys.modules, "charlm.inference.interactive.app", raising=False)
    with pytest.raises(UsageError, match=r"--interactive needs .* pip install -e \"\.\[interactive\]\""):
        importlib.import_module("charlm.inference.interactive.app")


@settings(max_examples=300, deadline=None)
@given(st.text("ab  字\u0301\t", max_size=60), st.integers(3, 12))
def test_rows_keep_words_whole_and_leave_room_for_the_cursor(line: str, width: int) -> None:
    rows = wrap(line, width)
    assert "".join(line[start:end] for start, end in rows) == line
    assert rows[0][0] == 0 and [end for _, end in rows[:-1]] == [start for start, _ in rows[1:]]
    for number, (start, end) in enumerate(rows):
        row, last = line[start:end], number == len(rows) - 1
        assert width_of(row) < width or (row[-1] == " " and width_of(row) == width and not last)
        if not last and end < len(line):  # what did not fit is a word that is as long as possible, or a longer one
            word = next(i for i in range(end + 1, len(line) + 1) if i == len(line) or line[i] in " 字")
            breaks = row[-1] in " 字" or line[end] in "字"
            assert (
                width_of(line[start:word]) >= width
                if breaks
                else width_of(line[start : end + 1]) >= width and " " not in row and "字" not in row
            )


def editor(text: str, width: int, height: int = 10) -> Editor:
    made = Editor(Session(text), knows=lambda character: character not in "x\n")
    made.create_content(width, height)
    return made


def test_moving_up_and_down_keeps_the_column() -> None:
    made = editor("abcd efg\n\n字字ab", 8)
    assert made.rows == [(0, 5), (5, 8), (9, 9), (10, 14)]
    places = []
    for cursor, rows in [
        (14, 1),
        (13, 3),
        (12, 3),
        (11, 3),
        (7, 1),
        (4, -1),
        (2, -1),
        (0, -3),
        (3, -3),
        (8, 9),
        (0, -9),
    ]:
        made.session.move(cursor)
        places.append(made.above(rows))
    assert places == [9, 4, 4, 2, 2, 8, 7, 10, 11, 3, 10]


def test_the_ends_of_a_row() -> None:
    made = editor("abcd efg\n\nabc", 8)
    ends = []
    for cursor in (0, 4, 5, 8, 9, 11):
        made.session.move(cursor)
        ends.append((made.edge(False), made.edge(True)))
    assert ends == [(0, 4), (0, 4), (5, 8), (5, 8), (9, 9), (10, 13)]
