"""Writing together with a model, without a terminal: the text, the suggestion after it, and undo.

A suggestion is the beginning of what `LanguageModel.stream` writes after a prompt with a temperature and a seed, which
together are a `Request`. Whoever runs the session streams its `request` and hands each piece to `receive`.
"""

from __future__ import annotations

import re
from collections import deque
from dataclasses import dataclass
from typing import NamedTuple

# A character of a script without blanks between words, a word with its apostrophes, or other signs; blanks before it.
ALONE = r"\u3040-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"
WORD = re.compile(rf"\s*(?:[{ALONE}]|[^\W{ALONE}]+(?:['’]\w+)*|[^\w\s]+|$)")
LONGEST_WORD = 200  # characters that are searched for the beginning of a word
MOST_UNDO = 200
HOTTEST = 5.0


@dataclass(frozen=True)
class Request:
    """What a suggestion depends on."""

    prompt: str
    temperature: float
    seed: int


class Moment(NamedTuple):
    """What undo goes back to."""

    text: str
    cursor: int
    request: Request


class Session:
    """A text with a cursor, and the suggestion that follows it. Every change may change `request`."""

    def __init__(self, text: str = "", temperature: float = 0.8, seed: int = 0) -> None:
        self.text, self.temperature, self.seed = text, temperature, seed
        self.cursor = len(text)
        self.notice = ""  # a sentence about the last action
        self.request = Request(text, temperature, seed)
        self._written, self._ended = "", False  # what came of the request, and whether that is all
        self._undo: deque[Moment] = deque(maxlen=MOST_UNDO)
        self._redo: list[Moment] = []
        self._typed_to: int | None = None  # where the last typed character ended, if that was the last action

    @property
    def before(self) -> str:
        """The text before the cursor."""
        return self.text[: self.cursor]

    @property
    def suggestion(self) -> str:
        """What the model wrote after the text so far; empty unless the cursor is at the end."""
        at_end = self.cursor == len(self.text)
        return self._written[len(self.text) - len(self.request.prompt) :] if at_end else ""

    @property
    def waiting(self) -> bool:
        """Whether more of the suggestion is to come."""
        return not self._ended

    def receive(self, request: Request, piece: str | None) -> None:
        """Add a piece of what was requested, or None at its end. Pieces of an earlier request are ignored."""
        if request == self.request:
            self._written, self._ended = self._written + (piece or ""), piece is None
            accepted = self.text[len(request.prompt) :]
            if not self._written.startswith(accepted[: len(self._written)]):  # the same seed gave something else
                self._update(len(self.text))
            elif self._ended and self._written == accepted:
                self._go_on()

    def insert(self, new: str) -> None:
        """Put `new` where the cursor is. Words typed one after another are undone one after another."""
        if not new:
            return
        goes_on = len(new) == 1 and self._typed_to == self.cursor
        new_word = self.before[-1:].isspace() and not new.isspace()
        if not goes_on or new_word:
            self._remember()
        self._replace(self.cursor, self.cursor, new)
        self._typed_to = self.cursor if len(new) == 1 else None

    def delete(self, start: int, end: int) -> None:
        """Delete ``text[start:end]``; places before and after the text are left out."""
        start, end = max(start, 0), min(end, len(self.text))
        if start < end:
            self._remember()
            self._replace(start, end, "")

    def move(self, to: int) -> None:
        """Put the cursor before the character `to`, or at the nearest end of the text."""
        self.cursor, self._typed_to = min(max(to, 0), len(self.text)), None

    def word_before(self) -> int:
        """Where the word before the cursor begins."""
        start = max(self.cursor - LONGEST_WORD, 0)
        words = [found for found in WORD.finditer(self.before, start) if found[0].strip()]
        return words[-1].end() - len(words[-1][0].lstrip()) if words else start

    def word_after(self) -> int:
        """Where the word after the cursor ends."""
        found = WORD.match(self.text, self.cursor)
        return found.end() if found else len(self.text)

    def accept(self, word: bool = False) -> None:
        """Make the suggestion, or the first word of it, part of the text."""
        whole = self.suggestion
        if not whole:
            at_end = self.cursor == len(self.text)
            self.notice = "nothing is suggested yet" if at_end else "suggestions are made at the end of the text"
            return
        found = WORD.match(whole)
        self._remember()
        self._replace(self.cursor, self.cursor, found[0] if word and found else whole)

    def another(self, step: int = 1) -> None:
        """Ask for the suggestion of the next seed, or with -1 of the one before."""
        if self.temperature == 0:
            self.notice = "at temperature 0 there is only one suggestion"
            return
        self.seed = (self.seed + step) % 2**63
        self._update(len(self.text))

    def warm(self, by: float) -> None:
        """Raise or lower the temperature, and ask for another suggestion."""
        self.temperature = min(max(round(self.temperature + by, 2), 0.0), HOTTEST)
        self._update(len(self.text))

    def undo(self) -> None:
        """Take back the last change of the text; the suggestion of then comes back, too."""
        self._restore(self._undo, self._redo, "nothing to undo")

    def redo(self) -> None:
        """Take back the last `undo`."""
        self._restore(self._redo, self._undo, "nothing to redo")

    def _restore(self, moments: deque[Moment] | list[Moment], others: deque[Moment] | list[Moment], none: str) -> None:
        if not moments:
            self.notice = none
            return
        others.append(Moment(self.text, self.cursor, self.request))
        self.text, self.cursor, request = moments.pop()
        self._typed_to = None
        self.seed = request.seed
        self._update(len(request.prompt) if request.temperature == self.temperature else len(self.text))

    def _remember(self) -> None:
        self._undo.append(Moment(self.text, self.cursor, self.request))
        self._redo.clear()

    def _replace(self, start: int, end: int, new: str) -> None:
        self.text = self.text[:start] + new + self.text[end:]
        self.move(start + len(new))
        origin = len(self.request.prompt)
        follows = self.text.startswith(self.request.prompt) and self._written.startswith(self.text[origin:])
        if follows and self._ended and self._written == self.text[origin:]:
            self._go_on()
        else:
            self._update(origin if follows else len(self.text))

    def _go_on(self) -> None:
        """Ask for what follows an accepted suggestion; with its seed, networks tend to write the same again."""
        if self._written:
            self.seed = (self.seed + 1) % 2**63
            self._update(len(self.text))

    def _update(self, origin: int) -> None:
        """Request what follows ``text[:origin]``."""
        request = Request(self.text[:origin], self.temperature, self.seed)
        if request != self.request:
            self.request, self._written, self._ended = request, "", False
