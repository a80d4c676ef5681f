"""What `charlm.inference.interactive.app` shows: the text in rows, the candidates, the state and the keys."""

from __future__ import annotations

import bisect
import functools
from collections.abc import Callable, Sequence
from typing import TypeAlias

from prompt_toolkit.data_structures import Point
from prompt_toolkit.formatted_text import StyleAndTextTuples
from prompt_toolkit.layout.controls import UIContent, UIControl
from prompt_toolkit.styles import Style
from prompt_toolkit.utils import get_cwidth

from charlm.inference.interactive.session import Session
from charlm.text.characters import visible

Listed: TypeAlias = Sequence[tuple[str, float]]

TEXT_WIDTH = 80  # columns; longer lines are hard to read
PANEL = 30  # columns
LONGEST = 16  # characters of an ending
# Italics and underlines, because there may be no colours.
STYLE = Style.from_dict(
    {"suggestion": "#808080 italic", "unknown": "ansired underline", "heading": "bold", "bar": "ansicyan"}
    | {"border": "#808080", "status": "reverse", "key": "bold", "message": "bold"}
)


@functools.lru_cache(maxsize=2**16)
def wrap(line: str, width: int) -> list[tuple[int, int]]:
    """The rows of a line in `width` columns, as (start, end): broken after blanks and around wide characters.

    Each row leaves the last column to a blank or to the cursor.
    """
    rows, start, column, allowed = [], 0, 0, 0  # `allowed`: the latest place for a break
    for i, character in enumerate(line):
        size = cells(character)
        if size == 2:
            allowed = i
        while column + size >= width and i > start and not (character == " " and column < width):
            end = allowed if allowed > start else i
            rows.append((start, end))
            start, column = end, width_of(line[end:i])
        column += size
        if character == " " or size == 2:
            allowed = i + 1
    rows.append((start, len(line)))
    return rows if column < width else [*rows, (len(line), len(line))]


def cells(character: str) -> int:
    """The columns that a character takes on the screen."""
    return get_cwidth(shown(character))


def shown(character: str) -> str:
    """A character as it is on the screen."""
    return character if character == " " else visible(character)


def width_of(text: str) -> int:
    """The columns that a text takes on the screen."""
    return sum(map(cells, text))


class Editor(UIControl):
    """The text with its suggestion, in rows of whole words."""

    def __init__(self, session: Session, knows: Callable[[str], bool]) -> None:
        self.session, self.knows = session, knows
        self.text = ""  # with the suggestion, as in `rows`
        self.rows = [(0, 0)]

    def create_content(self, width: int, height: int | None) -> UIContent:
        """See prompt_toolkit's `UIControl`."""
        self.text, self.rows = self.session.text + self.session.suggestion, []
        start = 0
        for line in self.text.split("\n"):
            self.rows += [(start + first, start + last) for first, last in wrap(line, min(width, TEXT_WIDTH))]
            start += len(line) + 1
        row = self.place()
        return UIContent(self.row, len(self.rows), Point(self.session.cursor - self.rows[row][0], row))

    def is_focusable(self) -> bool:
        """See prompt_toolkit's `UIControl`."""
        return True

    def row(self, number: int) -> StyleAndTextTuples:
        """Row `number` with its styles. A line break is visible only where the model does not know it."""
        start, end = self.rows[number]
        fragments: StyleAndTextTuples = []
        for i in range(start, min(end + 1, len(self.text))):
            character, typed = self.text[i], i < len(self.session.text)
            unknown = typed and not self.knows(character)
            if i < end or (character == "\n" and unknown):
                style = "class:unknown" if unknown else "" if typed else "class:suggestion"
                fragments.append((style, shown(character)))
        return fragments

    def place(self) -> int:
        """The row of the cursor."""
        return max(bisect.bisect_right(self.rows, self.session.cursor, key=lambda row: row[0]) - 1, 0)

    def above(self, rows: int) -> int:
        """The place that is so many rows above the cursor, or below it if negative."""
        row = self.place()
        column = width_of(self.text[self.rows[row][0] : self.session.cursor])
        start, end = self.rows[min(max(row - rows, 0), len(self.rows) - 1)]
        at = start
        while at < end - self.broken(end) and width_of(self.text[start : at + 1]) <= column:
            at += 1
        return at

    def edge(self, end: bool) -> int:
        """The beginning or the end of the cursor's row."""
        first, last = self.rows[self.place()]
        return last - self.broken(last) if end else first

    def broken(self, end: int) -> bool:
        """Whether a row that ends there goes on in the next: then `end` is a place in that one."""
        return end < len(self.text) and self.text[end] != "\n"


def panel(lists: Sequence[tuple[str, Listed]], rows: int) -> StyleAndTextTuples:
    """The lists with their headings one below another, in `rows` rows: as many of each as there is room for."""
    each = max(rows // max(len(lists), 1) - 2, 1)
    fragments: StyleAndTextTuples = []
    for heading, found in lists:
        listed = [(visible(text)[:LONGEST], probability) for text, probability in found[:each]]
        column = max((width_of(name) for name, _ in listed), default=0) + 1
        room = PANEL - column - 9
        top = max((probability for _, probability in listed), default=0) or 1.0
        fragments.append(("class:heading", f" {heading}\n"))
        for name, probability in listed:
            eighths = round(8 * room * probability / top)
            bar = "█" * (eighths // 8) + " ▏▎▍▌▋▊▉"[eighths % 8]
            fragments.append(("", f" {name}{' ' * (column - width_of(name))}"))
            fragments += [("class:bar", f"{bar:<{room + 1}}"), ("", f"{probability:6.1%}\n")]
        fragments.append(("", "\n"))
    return fragments


def summary(lists: Sequence[tuple[str, Listed]], width: int) -> StyleAndTextTuples:
    """The best candidates of the first list, in one row."""
    items = [f"{visible(text)} {probability:.0%}" for _, found in lists[:1] for text, probability in found]
    return [("", " " + "  ".join(fitting(items, width - 1)))]


def status(session: Session, width: int) -> StyleAndTextTuples:
    """The values that a suggestion depends on."""
    items = [f"temperature {session.temperature:g}", f"seed {session.seed}", f"{len(session.text):,} characters"]
    items += ["writing …"] if session.waiting else []
    return [("", " " + "  ".join(fitting(items, width - 1)))]


def hints(message: str, keys: Sequence[tuple[str, str]], width: int) -> StyleAndTextTuples:
    """What to know now, or else the first ones of `keys`, with what they do."""
    if message:
        return [("class:message", f" {message}")]
    chosen = fitting([f"{key} {what}" for key, what in keys], width - 1)
    return [part for key, what in keys[: len(chosen)] for part in (("class:key", f" {key}"), ("", f" {what} "))]


def fitting(items: Sequence[str], width: int) -> list[str]:
    """The first ones of `items` that fit into a row, two blanks apart."""
    chosen: list[str] = []
    for item in items:
        width -= width_of(item) + 2
        if width < -2:
            break
        chosen.append(item)
    return chosen
