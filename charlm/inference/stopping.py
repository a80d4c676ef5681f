"""Where a text ends, before its length is used up: at given texts, or at the end of a sentence or paragraph."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, NamedTuple

StopAt = Literal["paragraph", "sentence"]

CLOSING = "\"'”’»)]」』"


class End(NamedTuple):
    """The continuation up to its end, and why it ends there."""

    text: str
    reason: str


class Stops:
    """Finds the end of a continuation that grows character by character.

    A stop text is not part of the continuation, and may begin in the prompt. A sentence ends with its punctuation
    mark, which must be in the continuation, and closing quotes, and a paragraph before a blank line.
    """

    def __init__(self, texts: Sequence[str] = (), at: StopAt | None = None) -> None:
        self._texts, self._at = tuple(texts), at
        self._longest = max(map(len, self._texts), default=0)

    def __bool__(self) -> bool:
        return bool(self._texts or self._at)

    def find(self, prompt: str, text: str) -> End | None:
        """The end of `text`, if its last character completes one. Earlier ones were found when they were the last."""
        if self._texts:
            tail = self._tail(prompt, text)
            found = [stop for stop in self._texts if tail.endswith(stop)]
            if found:
                return End(text[: max(0, len(text) - max(map(len, found)))], "stop")
        if self._at == "sentence" and _ends_sentence(text):
            return End(text[:-1], "sentence")
        if self._at == "paragraph" and text.endswith("\n"):
            together = prompt + text
            left = together.rstrip()
            if left and together.count("\n", len(left)) == 2:
                return End(text[: max(0, len(left) - len(prompt))], "paragraph")
        return None

    def settled(self, prompt: str, text: str) -> int:
        """How many characters of `text` are part of the continuation, whatever follows."""
        kept = len(text)
        if self._texts:
            tail = self._tail(prompt, text)
            for n in range(min(self._longest - 1, len(tail)), 0, -1):
                if any(stop.startswith(tail[-n:]) for stop in self._texts):
                    kept -= n
                    break
        if self._at == "paragraph":
            kept = min(kept, len(text.rstrip()))
        return max(kept, 0)

    def _tail(self, prompt: str, text: str) -> str:
        """The last characters, as many as the longest stop text has."""
        tail = text[-self._longest :]
        return tail if len(tail) == self._longest else (prompt + tail)[-self._longest :]


def _ends_sentence(text: str) -> bool:
    """Whether a sentence ends before the last character: at a mark, perhaps with closing quotes or brackets."""
    place = len(text) - 2
    while place >= 0 and text[place] in CLOSING:
        place -= 1
    mark, last = text[max(place, 0) : place + 1], text[-1]
    if mark and mark in ".!?…":
        return last.isspace()
    return bool(mark) and mark in "。！？" and last not in "。！？" + CLOSING
