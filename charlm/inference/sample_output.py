"""What ``sample.py`` writes to stdout: texts as they are or as JSON, and tables. Loads no PyTorch."""

from __future__ import annotations

import io
import json
import os
import shutil
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from charlm.inference.sampling_options import OutputOptions
from charlm.text.characters import visible

if TYPE_CHECKING:  # these import PyTorch
    from charlm.inference.language_model import Prediction
    from charlm.inference.sampling import Sample
    from charlm.inference.text_searcher import Ending, Filling

NOTHING = "(nothing)"
BETWEEN = "\n---\n"  # two texts


def write(pieces: Iterable[str]) -> None:
    """Write each piece to stdout immediately, unless that is closed."""
    if sys.stdout is None:
        return
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(encoding="utf-8", errors="replace", newline="")
    last = ""
    try:
        for piece in pieces:
            sys.stdout.write(piece)
            sys.stdout.flush()
            last = piece or last
        if sys.stdout.isatty() and not last.endswith("\n"):
            sys.stdout.write("\n")
        sys.stdout.flush()
    except BrokenPipeError:  # as in: sample.py | head
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


@contextmanager
def bar(total: int, shown: bool = True) -> Iterator[Callable[[int], object]]:
    """A bar on stderr, if that is a terminal and the work takes a while. Gives the function that moves it on."""
    from tqdm import tqdm

    disable = None if shown else True  # None: where stderr is no terminal
    with tqdm(total=total, unit=" characters", unit_scale=True, delay=1, leave=False, disable=disable) as progress:
        yield progress.update


def samples(found: Iterable[Sample], form: OutputOptions) -> Iterator[str]:
    """Texts with a line between two of them, or a line of JSON for each."""
    for number, sample in enumerate(found):
        if form.format == "text":
            yield (BETWEEN if number else "") + sample.prompt + sample.text
            continue
        row: dict[str, Any] = {"prompt": sample.prompt, "text": sample.text, "logprob": sample.logprob}
        row |= {"seed": sample.seed, "stop_reason": sample.stop_reason}
        if form.logprobs:
            row["logprobs"] = sample.logprobs
        yield _line(row)


def endings(found: Iterable[Ending], form: OutputOptions) -> Iterator[str]:
    """Words with their probabilities, or lines of JSON."""
    for ending in found:
        row = {"text": ending.text, "probability": ending.probability}
        yield _line(row) if form.format == "jsonl" else f"{ending.probability:.4f}  {visible(ending.word) or NOTHING}\n"


def fillings(found: Iterable[Filling], form: OutputOptions) -> Iterator[str]:
    """What may stand in a gap, with log-probabilities, or lines of JSON."""
    for filling in found:
        row = {"text": filling.text, "logprob": filling.logprob}
        yield _line(row) if form.format == "jsonl" else f"{filling.logprob:9.3f}  {visible(filling.text) or NOTHING}\n"


def _line(row: dict[str, Any]) -> str:
    return json.dumps(row, ensure_ascii=False) + "\n"


def positions(predictions: Sequence[Prediction]) -> str:
    """Two aligned lines: the characters read, and below them the predictions with their probabilities."""
    from rich.cells import cell_len  # some characters are two columns wide

    columns = [(visible(p.read), f"{visible(p.next)} {p.probability:.2f}") for p in predictions]
    width = max(cell_len(cell) for column in columns for cell in column) + 2
    size = max(1, (shutil.get_terminal_size().columns - len("next  ") + 2) // width)
    lines = []
    for start in range(0, len(columns), size):  # a long text needs several pairs of lines
        for name, cells in zip(("read", "next"), zip(*columns[start : start + size], strict=True), strict=True):
            padded = "".join(cell + " " * (width - cell_len(cell)) for cell in cells)
            lines.append(f"{name}  {padded}".rstrip() + "\n")
        lines.append("\n")
    return "".join(lines[:-1])
