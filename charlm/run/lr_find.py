"""``python train.py task=lr_find``: a learning-rate range test on a fraction of an epoch, as a picture and a CSV."""

from __future__ import annotations

import csv
import io
import math
import shlex
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from charlm.checkpoint.storage import replace_file
from charlm.curves import new_figure, quiet_matplotlib, rendered
from charlm.errors import OptionError, UsageError
from charlm.inference.html import card, image
from charlm.output import print_facts
from charlm.run.briefly import train_briefly
from charlm.run.compose import Job
from charlm.run.experiment import new_console
from charlm.run.settings import Settings
from charlm.run.threads import own_threads
from charlm.training.module import CharLM
from charlm.training.range_test import Point, RangeTest, growing, suggest

FEWEST = 20  # steps


@dataclass(frozen=True)
class RangeResult:
    """The outcome of a range test: its points, the learning rate to try (None: no suggestion) and its folder."""

    suggestion: float | None
    points: list[Point] = field(repr=False)
    folder: Path

    def _repr_html_(self) -> str:
        found = "none" if self.suggestion is None else f"optimizer.lr={self.suggestion:.2g}"
        return card("Learning-rate range test", {"suggestion": found}, image(self.folder / "lr_find.png"))


@own_threads()
def lr_find(settings: Settings, job: Job) -> RangeResult:
    """Train a new model for some steps at a growing learning rate; a picture and a CSV are all that is left of it.

    Everything else is as in training. Raises UsageError like `charlm.run.experiment.run`.
    """
    console, options = new_console(), settings.lr_find
    if rates := [n for n, group in settings.parameter_groups if group.lr is not None]:
        raise UsageError(
            f"task=lr_find finds one learning rate for all parts: leave out parameter_groups.{rates[0]}.lr"
        )
    if options.steps < FEWEST:
        raise OptionError(
            "lr_find.steps", f"must be at least {FEWEST}: in fewer, the loss is mostly noise", options.steps
        )
    tests: list[RangeTest] = []

    def observer(advance: Callable[[], None]) -> RangeTest:
        tests.append(RangeTest(advance))
        return tests[0]

    def prepare(model: CharLM) -> None:
        model.set_scheduler(partial(growing, options=options), "step")

    folder, model = train_briefly(
        console, settings, job, observer, batches=options.steps, steps=options.steps, prepare=prepare
    )
    points = tests[0].points
    if not points:
        raise UsageError("trainer: these limits leave no batch to train on")
    if not math.isfinite(points[0].nats):
        raise UsageError("task=lr_find: the loss of the first step is not finite, at any learning rate")
    result = RangeResult(suggest(points), points, folder)
    replace_file(folder / "lr_find.csv", table(points))
    replace_file(folder / "lr_find.png", picture(result, model))
    rows = {"suggestion": "none: the loss does not fall in this range; change lr_find.lowest, lr_find.highest"}
    if result.suggestion is not None:
        rows = {"suggestion": f"optimizer.lr={result.suggestion:.2g}"}
    print_facts(console, rows | {"picture": str(folder / "lr_find.png"), "table": str(folder / "lr_find.csv")})
    if result.suggestion is not None:
        kept = [
            o for o in job.overrides if not o.lstrip("+").startswith(("task=", "lr_find.", "optimizer.lr=", "hydra."))
        ]
        command = shlex.join(["python", "train.py", *kept, f"optimizer.lr={result.suggestion:.2g}"])
        console.print("[bold cyan]train with it[/]", highlight=False)
        console.print(f"  {command}", markup=False, highlight=False, soft_wrap=True)
    return result


def table(points: Sequence[Point]) -> bytes:
    """A CSV with a row per step."""
    text = io.StringIO()
    writer = csv.writer(text)
    writer.writerow(Point._fields)
    writer.writerows(points)
    return text.getvalue().encode()


def picture(result: RangeResult, title: str) -> bytes:
    """A PNG: the loss of each step and the smoothed loss over the learning rate, with the suggestion."""
    points = [point for point in result.points if math.isfinite(point.nats)]
    with quiet_matplotlib():
        return _drawn(points, result.suggestion, title)


def _drawn(points: list[Point], suggestion: float | None, title: str) -> bytes:
    figure = new_figure(8, 5)
    axes = figure.subplots()
    rates = [point.learning_rate for point in points]
    axes.plot(rates, [point.nats for point in points], color="0.8", label="loss of each step")
    axes.plot(rates, [point.smoothed for point in points], color="C0", label="smoothed")
    if suggestion is not None:
        axes.axvline(suggestion, color="C3", linestyle="--", label=f"suggestion {suggestion:.2g}")
    axes.set(xscale="log", xlabel="learning rate", ylabel="training loss (nats per character)", title=title)
    top = max(points[0].smoothed, *(point.smoothed for point in points))
    axes.set_ylim(min(point.nats for point in points) - 0.1, 1.2 * top)
    axes.legend()
    axes.grid(alpha=0.3)
    return rendered(figure, "png")
