"""Loss curves as pictures, from the rows of ``metrics.csv``. Matplotlib is imported only when something is drawn."""

from __future__ import annotations

import csv
import functools
import io
import logging
import math
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from charlm.errors import UsageError

if TYPE_CHECKING:  # half a second to import
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.text import Text

Rows = Sequence[Mapping[str, Any]]

DRAWN = ("epoch", "train_nats", "val_nats")  # the columns that are read
TRAIN, VAL = "#8a8f98", "#0b62b5"
DOTS = {"marker": "o", "markersize": 3}
MARKED = 40  # with up to so many epochs, each one has a dot
NAMED = 40  # the most runs in a legend
WIDEST = 45  # characters of a name


def read_rows(path: Path) -> list[dict[str, float | None]]:
    """The rows of a ``metrics.csv``, with None for missing values. Raises UsageError if it is something else."""
    try:
        with path.open(encoding="utf-8", newline="") as file:
            return [{name: float(row[name]) if row[name] else None for name in DRAWN} for row in csv.DictReader(file)]
    except (KeyError, TypeError, ValueError, csv.Error):  # ValueError: also text that is not UTF-8
        raise UsageError(f"{path} is not the metrics.csv of a run: give run folders, such as runs/*") from None


def best(rows: Rows) -> tuple[float, float] | None:
    """The epoch with the lowest loss, and that loss: of validation, or of training if nothing was validated."""
    column = "val_nats" if points(rows, "val_nats")[0] else "train_nats"
    return min(zip(*points(rows, column), strict=True), key=lambda point: point[1], default=None)


def points(rows: Rows, column: str) -> tuple[list[float], list[float]]:
    """The epochs at which `column` has a finite value, and these values."""
    found = [(row["epoch"], row[column]) for row in rows if row["epoch"] is not None and row[column] is not None]
    finite = [(epoch, value) for epoch, value in found if math.isfinite(value)]
    return [epoch for epoch, _ in finite], [value for _, value in finite]


def picture(rows: Rows, name: str = "", rates: Sequence[tuple[float, float]] = ()) -> bytes:
    """A PNG of one run: training and validation loss, a mark at the best epoch, and below them the learning rate.

    `rates` are points (epochs trained, learning rate).
    """
    with quiet_matplotlib():
        figure = new_figure(7, 4.6)
        losses, rate = figure.subplots(2, 1, sharex=True, height_ratios=(4, 1))
        dots: dict[str, Any] = DOTS if len(rows) <= MARKED else {}
        for column, label, colour in (("train_nats", "training", TRAIN), ("val_nats", "validation", VAL)):
            if points(rows, column)[0]:
                losses.plot(*points(rows, column), label=label, color=colour, **dots)
        if lowest := best(rows):
            mark = f"best: {lowest[1]:.4f} in epoch {lowest[0]:g}"
            losses.plot(*lowest, "*", color="#d1495b", markersize=12, label=mark, linestyle="none")
            losses.legend(frameon=False)
        rate.plot(*zip(*rates, strict=True), color="#3c7d4f")
        suit_scale(losses)
        if highest := max((value for _, value in rates), default=0.0):
            rate.set_ylim(0, 1.15 * highest)
        losses.set_ylabel("nats per character")
        rate.set_ylabel("learning rate")
        finish(rate, rows)
        if rates:
            rate.set_xlim(0, max(*rate.get_xlim(), rates[-1][0]))
        losses.grid(alpha=0.25)
        losses.label_outer()
        set_text(losses.set_title(""), shortened(name, 55))
        figure.align_ylabels()
        return rendered(figure, "png")


def comparison(runs: Mapping[str, Rows], settings: Mapping[str, str], format: str = "png") -> bytes:
    """A picture of several runs by name: validation loss, or training loss (dashed) for runs without validation.

    The legend lists the runs from the best to the worst, at most `NAMED` of them, each with its `settings`; those of
    which only a training loss is known come last, because the two cannot be compared.
    """
    trained_only = {name for name, rows in runs.items() if not points(rows, "val_nats")[0]}
    order = sorted(runs, key=lambda name: (name in trained_only, (best(runs[name]) or (0.0, math.inf))[1]))
    with quiet_matplotlib():
        from matplotlib import colormaps

        text_lines = sum(2 if settings.get(name) else 1 for name in order[:NAMED])
        height = max(4.6, 0.8 + 0.21 * (text_lines + 1))
        figure = new_figure(10, height)
        axes = figure.subplots()
        lines = []
        for number, name in enumerate(order):
            rows = runs[name]
            column, style = ("train_nats", "--") if name in trained_only else ("val_nats", "-")
            few = len(order) <= 10
            colour = f"C{number}" if few else colormaps["turbo"](0.05 + 0.9 * number / len(order))
            dots: dict[str, Any] = DOTS if few and len(rows) <= MARKED else {}
            lines += axes.plot(*points(rows, column), style, color=colour, linewidth=1.3, zorder=-number, **dots)
        legend = axes.legend(
            lines[:NAMED],
            ["x"] * len(lines[:NAMED]),  # replaced below, because Matplotlib hides a name such as _old
            loc="upper left",
            bbox_to_anchor=(1.01, 1),
            frameon=False,
            fontsize=8,
            title=f"the best {NAMED} of {len(order)} runs" if len(order) > NAMED else "lowest loss",
            title_fontsize=8,
        )
        for label, name in zip(legend.get_texts(), order, strict=False):
            lowest = best(runs[name])
            text = (f"{lowest[1]:.4f}  " if lowest else "") + shortened(name, WIDEST)
            text += "  (training loss)" if name in trained_only else ""
            set_text(label, text + (f"\n{shortened(settings[name], WIDEST + 8)}" if settings.get(name) else ""))
        suit_scale(axes)
        axes.set_ylabel("nats per character")
        axes.grid(alpha=0.25)
        finish(axes, [row for rows in runs.values() for row in rows])
        return rendered(figure, format)


def new_figure(width: float, height: float) -> Figure:
    """An empty figure (inches) that no window or pyplot knows about."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained", dpi=110)
    FigureCanvasAgg(figure)
    return figure


def rendered(figure: Figure, format: str) -> bytes:
    """The figure as a file in `format`."""
    file = io.BytesIO()
    figure.savefig(file, format=format)
    return file.getvalue()


def suit_scale(axes: Axes) -> None:
    """A logarithmic y axis if the values differ by more than 20 times."""
    from matplotlib.ticker import LogLocator

    values = [y for line in axes.lines for y in np.asarray(line.get_ydata(), dtype=float).tolist()]
    if values and min(values) > 0 and max(values) > 20 * min(values):
        axes.set_yscale("log")
        axes.yaxis.set_minor_locator(LogLocator(subs=(3,)))  # more labels would overlap


def finish(axes: Axes, rows: Rows) -> None:
    """Whole epochs below `axes`, also for a single one."""
    from matplotlib.ticker import MaxNLocator

    epochs = [row["epoch"] for row in rows if row["epoch"] is not None] or [1]
    axes.set_xlabel("epoch")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    if min(epochs) == max(epochs):
        axes.set_xlim(epochs[0] - 0.5, epochs[0] + 0.5)


def shortened(name: str, most: int) -> str:
    """`name` on one line, without its middle if it is longer than `most` characters."""
    name = " ".join(name.encode("utf-8", "replace").decode().split())  # file names may have lone surrogates
    return name if len(name) <= most else f"{name[: most // 2 - 1]}…{name[-(most - most // 2) :]}"


def set_text(label: Text, text: str) -> None:
    """Set the text of `label` as it is ($ begins no formula), in fonts that have its characters."""
    label.set_parse_math(False)
    label.set_text(text)
    label.set_fontfamily(fonts("".join(sorted(set(text)))))


@functools.cache
def fonts(characters: str) -> list[str]:
    """The default font, and those of the installed ones that `characters` need besides."""
    from matplotlib.font_manager import FontProperties, findfont, fontManager, get_font

    names = ["DejaVu Sans"]
    missing = {ord(c) for c in characters} - set(get_font(findfont(FontProperties(names[0]))).get_charmap())
    for font in fontManager.ttflist if missing else ():
        if font.name.startswith("Last Resort"):  # it has a box for each character
            continue
        try:
            found = missing & set(get_font(font.fname).get_charmap())
        except (OSError, RuntimeError):  # a font that FreeType cannot read
            continue
        if found:
            names.append(font.name)
            missing -= found
    return names


@contextmanager
def quiet_matplotlib() -> Iterator[None]:
    """Matplotlib's own style whatever the user's is, without notes about fonts and caches."""
    logging.getLogger("matplotlib").setLevel(logging.ERROR)
    from matplotlib import style

    with warnings.catch_warnings(), style.context("default"):
        warnings.simplefilter("ignore")  # characters that no installed font has are drawn as boxes
        yield
