"""What a search has found: its table, the best settings, how much each option matters, and a picture."""

from __future__ import annotations

import math
import shlex
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console

from charlm.checkpoint.paths import program
from charlm.checkpoint.storage import replace_file
from charlm.curves import TRAIN, VAL, new_figure, quiet_matplotlib, rendered, set_text, shortened
from charlm.inference.html import card, image
from charlm.output import print_command, print_facts, print_table
from charlm.run.search_options import POPULATION, Range, Space
from charlm.sweeps import results
from charlm.sweeps.folder import JobRecord, SweepFolder
from charlm.sweeps.space import with_settings
from charlm.sweeps.tables import final_table

if TYPE_CHECKING:
    import optuna
    from matplotlib.axes import Axes

    from charlm.sweeps.study import Trials

TOP = 5  # trials that the importances should compare with all
DRAWN = 11  # options in the picture, the most important ones


@dataclass(frozen=True)
class SearchResult:
    """The outcome of a search.

    `nats` is the lowest loss per character and `best` the settings that gave it, by the options' full names; `command`
    trains with them (for a population, whose settings change, it writes with the best model). `table` has a row per
    trial, the best first, and `importances` says how much each option matters; they add up to 1.
    """

    nats: float
    best: dict[str, str]
    command: str
    folder: Path
    run: Path = field(repr=False)  # the folder of the best trial
    table: list[dict[str, Any]] = field(repr=False)
    importances: dict[str, float] = field(repr=False)

    def __fspath__(self) -> str:
        """The folder of the best trial, so that ``charlm.load(result)`` opens its model."""
        return str(self.run)

    def _repr_html_(self) -> str:
        settings = " ".join(f"{name}={value}" for name, value in self.best.items())
        facts = {"best loss": f"{self.nats:.4f} nats/char", "with": settings, "folder": str(self.folder)}
        return card("Search", facts, image(self.folder / "search.png"))


def conclude(
    folder: SweepFolder, records: Sequence[JobRecord], trials: Trials, base: Sequence[str], console: Console
) -> SearchResult | None:
    """Write and print the results of the trials that have begun. Returns None if none of them has a loss."""
    begun = [record for record in records if record.status != "waiting"]
    if not begun:
        return None
    loss = results.loss_name(begun)
    table = results.rows(begun, loss, list(trials.space), "trial")
    found = [row for row in table if row["status"] in ("finished", "pruned") and row[loss] is not None]
    # Those of a population change while they train.
    weights = {} if trials.options.pruner == POPULATION else importances(trials.study)
    best = {} if not found else {name: found[0][name] for name in trials.space}
    command = f"python {program('train.py')} {shlex.join(with_settings(base, best))}"
    if found and trials.options.pruner == POPULATION:  # its settings are only the last ones
        command = f"python {program('sample.py')} --checkpoint {shlex.quote(str(folder.path / found[0]['folder']))}"
    content = {"trials": table, "importances": weights, "best": best, "command": command if best else None}
    results.write_results(folder, table, content)
    console.print()
    print_table(console, final_table(table, loss, console.width))
    console.print()
    if not found:
        return None
    replace_file(folder.path / "search.png", picture(begun, trials.space, weights))
    number, settings = found[0]["trial"], " ".join(f"{name}={value}" for name, value in best.items())
    facts = {"best": f"trial {number}: {found[0][loss]:.4f} nats/char with {settings}"}
    facts["importance"] = f"unknown before {2 * TOP} trials have a loss"
    if trials.options.pruner == POPULATION:
        facts["importance"] = "unknown, because settings may change while a population trains"
    if weights:
        facts["importance"] = ", ".join(f"{name} {100 * weight:.0f} %" for name, weight in weights.items())
    facts["results"] = f"{folder.path / 'results.csv'}, .json, losses.png and search.png"
    print_facts(console, facts)
    population = trials.options.pruner == POPULATION
    print_command(console, "write with the best model" if population else "train with the best settings", command)
    run = folder.path / found[0]["folder"]
    return SearchResult(found[0][loss], best, command, folder.path, run, table, weights)


def importances(study: optuna.Study) -> dict[str, float]:
    """How much each option matters for being among the best trials, the most important first; nothing for too few.

    PED-ANOVA (Watanabe, Bansal and Hutter 2023, arXiv:2304.10255), which needs only Optuna. A pruned trial, which is
    not among the best, counts with its last loss.
    """
    import optuna
    from optuna.importance import PedAnovaImportanceEvaluator, get_param_importances

    ended = [trial for trial in study.get_trials(deepcopy=False) if trial.value is not None]
    if len(ended) < 2 * TOP:
        return {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        counted = optuna.create_study()  # as if they were finished: Optuna leaves out the others
        counted.add_trials(
            [optuna.create_trial(params=t.params, distributions=t.distributions, value=t.value) for t in ended]
        )
        evaluator = PedAnovaImportanceEvaluator(target_quantile=max(0.1, TOP / len(ended)))
        found = get_param_importances(counted, evaluator=evaluator)
    return dict(sorted(found.items(), key=lambda item: (-item[1], item[0])))


def picture(records: Sequence[JobRecord], space: Space, weights: Mapping[str, float]) -> bytes:
    """A PNG: the loss of each trial with the lowest one so far, and the loss over each option."""
    with quiet_matplotlib():
        return _drawn([record for record in records if record.nats is not None], space, weights)


def _drawn(records: Sequence[JobRecord], space: Space, weights: Mapping[str, float]) -> bytes:
    from matplotlib.ticker import LogLocator

    names = sorted(space, key=lambda name: -weights.get(name, 0.0))[:DRAWN]
    columns = 2 if len(names) in (1, 3) else 3
    lines = math.ceil((len(names) + 1) / columns)
    figure = new_figure(1 + 3.6 * columns, 0.4 + 3 * lines)
    panels = list(figure.subplots(lines, columns, sharey=True, squeeze=False).flat)
    numbers = [record.number for record in records]
    losses = [record.nats or 0.0 for record in records]
    _dots(panels[0], records, numbers)
    panels[0].step(numbers, list(accumulate(losses, min)), where="post", color=VAL, label="lowest so far")
    panels[0].set_xlabel("trial")
    panels[0].legend(frameon=False, fontsize=8)
    for axes, name in zip(panels[1:], names, strict=False):
        values = [results.settings_of(record.overrides)[name] for record in records]
        choices = space[name]
        if isinstance(choices, Range):
            _dots(axes, records, [float(value) for value in values])
            if choices.log:
                axes.set_xscale("log")
                axes.xaxis.set_major_locator(LogLocator(subs=(1, 3)))
                axes.xaxis.set_major_formatter("{x:g}")
                axes.xaxis.set_minor_formatter("")
        else:
            _dots(axes, records, [choices.index(value) for value in values])
            # A $ begins a formula.
            axes.set_xticks(range(len(choices)), [shortened(choice, 12).replace("$", r"\$") for choice in choices])
            axes.set_xlim(-0.5, len(choices) - 0.5)
        share = f"  ({100 * weights[name]:.0f} %)" if name in weights else ""
        set_text(axes.set_xlabel(""), shortened(name, 30) + share)
    for axes in panels[len(names) + 1 :]:
        axes.remove()
    for axes in panels[: len(names) + 1]:
        axes.grid(alpha=0.25)
        if axes in panels[::columns]:
            axes.set_ylabel("nats per character")
    return rendered(figure, "png")


def _dots(axes: Axes, records: Sequence[JobRecord], places: Sequence[float]) -> None:
    """The loss of each trial that has ended at its place: a dot, or a ring if it was pruned."""
    for label in ("finished", "pruned"):
        here = [record.status == label and record.nats is not None for record in records]
        chosen = [(x, record.nats) for x, record, is_here in zip(places, records, here, strict=True) if is_here]
        if chosen:
            face, edge = (VAL, VAL) if label == "finished" else ("none", TRAIN)
            x, y = zip(*chosen, strict=True)
            axes.scatter(x, y, s=22, label=label, facecolors=face, edgecolors=edge)
