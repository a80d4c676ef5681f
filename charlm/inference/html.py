"""What a notebook shows: a card of facts, and a text with its surprising characters marked.

Every text is escaped: it may come from a checkpoint that somebody else made.
"""

from __future__ import annotations

import base64
import html
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from charlm.text.characters import visible


def printable(value: object) -> str:
    """A value of unknown origin, short and without control characters."""
    return "".join(c for c in str(value)[:80] if c.isprintable())


def card(title: str, facts: Mapping[str, str], below: str = "") -> str:
    """A table of names and values, followed by `below`, which is HTML already."""
    rows = "".join(
        f'<tr><th style="text-align: left">{html.escape(name)}</th>'
        f'<td style="text-align: left">{html.escape(value)}</td></tr>'
        for name, value in facts.items()
    )
    return f"<div><strong>{html.escape(title)}</strong><table>{rows}</table>{below}</div>"


def image(path: Path) -> str:
    """The PNG at `path` as HTML; nothing if there is none."""
    if not path.is_file():
        return ""
    data = base64.b64encode(path.read_bytes()).decode()
    return f'<img alt="{html.escape(path.stem)}" src="data:image/png;base64,{data}">'


class Score(NamedTuple):
    """A character of a text and its loss: ``-ln p``, where p is the probability that the model gave it."""

    character: str
    nats: float

    @property
    def bits(self) -> float:
        """The same in bits."""
        return self.nats / math.log(2)


@dataclass(frozen=True)
class Surprise:
    """A text whose characters a notebook shows the redder the more they surprise the model.

    `first` is the first character, which has no score. The full colour is `worst` nats or more.
    """

    first: str
    scores: Sequence[Score]
    worst: float

    def __repr__(self) -> str:
        mean = sum(score.nats for score in self.scores) / len(self.scores)
        return f"<{len(self.scores):,} characters, {mean:.4f} nats per character; a notebook shows them in colour>"

    def _repr_html_(self) -> str:
        spans = "".join(
            f'<span title="{nats:.2f} nats" style="background: rgba(230, 60, 40, {min(nats / self.worst, 1):.2f})">'
            f"{_cell(character)}</span>"
            for character, nats in self.scores
        )
        style = "white-space: pre-wrap; overflow-wrap: anywhere; line-height: 1.6"
        return f'<pre style="{style}">{_cell(self.first)}{spans}</pre>'


def _cell(character: str) -> str:
    """A character in HTML. A space stays one, so that lines can break; its colour shows it."""
    shown = character if character == " " else visible(character)
    return html.escape(shown) + ("\n" if character == "\n" else "")
