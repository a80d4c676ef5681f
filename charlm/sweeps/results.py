"""The results of a sweep or a search: a table of its jobs, best first, means over seeds, and both as files."""

from __future__ import annotations

import csv
import io
import json
import statistics
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from charlm.checkpoint.storage import replace_file
from charlm.errors import UsageError
from charlm.run.suggest import option_of
from charlm.sweeps.folder import JobRecord, SweepFolder

FIRST = ("job", "trial", "model")
LAST = ("epochs", "seconds", "folder", "status", "error")


def settings_of(overrides: Sequence[str]) -> dict[str, str]:
    """What each override sets, by the option's full name."""
    return {option_of(override): override.partition("=")[2] for override in overrides}


def differing(jobs: Sequence[Mapping[str, str]]) -> list[str]:
    """The options that are not the same in all jobs, in the order in which they were typed."""
    names = dict.fromkeys(name for job in jobs for name in job)
    return [name for name in names if len({job.get(name) for job in jobs}) > 1]


def loss_name(records: Sequence[JobRecord]) -> str:
    """The name of the loss that all jobs report."""
    names = {record.loss for record in records if record.nats is not None}
    return names.pop() if len(names) == 1 else "best_nats"


def described(overrides: Sequence[str], differing: Collection[str]) -> str:
    """Those of a job's `overrides` that set an option in which the jobs differ."""
    return " ".join(override for override in overrides if option_of(override) in differing)


def rows(
    records: Sequence[JobRecord], loss: str, names: Sequence[str] | None = None, noun: str = "job"
) -> list[dict[str, Any]]:
    """One row per job: the finished ones, the lowest loss first, then the others. `loss` is the name of its column.

    `names` are the settings that have a column, those that differ if it is None; `noun` is what a job is called.
    """
    settings = {record.number: settings_of(record.overrides) for record in records}
    names = [name for name in names or differing(list(settings.values())) if name != "model"]
    made = [
        {
            noun: record.number,
            "model": record.model,
            **{name: settings[record.number].get(name) for name in names},
            loss: record.nats,
            "epochs": record.epoch,
            "seconds": round(record.seconds, 1),
            "folder": record.folder,
            "status": record.status,
            "error": record.error,
        }
        for record in records
    ]
    trained = {record.number: not record.loss.startswith("best_val") for record in records}

    def order(row: dict[str, Any]) -> tuple[Any, ...]:
        """Losses of training, where there was no validation, come after those of validation."""
        number = row[noun]
        return row["status"] != "finished", row[loss] is None, trained[number], row[loss] or 0.0, number

    return sorted(made, key=order)


def over_seeds(table: Sequence[Mapping[str, Any]], loss: str) -> list[dict[str, Any]]:
    """Mean and standard deviation of the loss over the seeds of equal settings, the lowest mean first.

    Nothing if no two jobs differ only in their seed.
    """
    groups: dict[tuple[Any, ...], list[float]] = {}
    for row in table:
        if row["status"] == "finished" and row[loss] is not None:
            key = tuple((name, value) for name, value in row.items() if name not in ("job", "seed", loss, *LAST))
            groups.setdefault(key, []).append(row[loss])
    if "seed" not in (table[0] if table else {}) or all(len(losses) < 2 for losses in groups.values()):
        return []
    made = [
        {
            **dict(key),
            "seeds": len(losses),
            "mean": statistics.fmean(losses),
            "standard deviation": statistics.stdev(losses) if len(losses) > 1 else None,
        }
        for key, losses in groups.items()
    ]
    return sorted(made, key=lambda group: group["mean"])


def write_results(sweep: SweepFolder, table: Sequence[Mapping[str, Any]], content: Mapping[str, Any]) -> None:
    """Write ``results.csv``, ``results.json`` with `content` and, where there are curves, ``losses.png``."""
    text = io.StringIO()
    writer = csv.DictWriter(text, list(table[0]) if table else [])
    writer.writeheader()
    writer.writerows(table)
    replace_file(sweep.path / "results.csv", text.getvalue().encode())
    replace_file(sweep.path / "results.json", (json.dumps(content, indent=2) + "\n").encode())
    if png := picture(sweep.path, table):
        replace_file(sweep.path / "losses.png", png)


def picture(sweep: Path, table: Sequence[Mapping[str, Any]]) -> bytes | None:
    """The curves of the jobs in one picture, or None if no epoch has ended."""
    from charlm.curves import comparison, points, read_rows  # NumPy takes a while to load

    runs, settings = {}, {}
    for row in table:
        try:
            curve = read_rows(sweep / row["folder"] / "metrics.csv")
        except (OSError, UsageError):
            continue
        if points(curve, "train_nats")[0]:
            runs[row["folder"]] = curve
            names = [name for name in row if name not in (*FIRST, *LAST) and not name.endswith("_nats")]
            settings[row["folder"]] = " ".join(f"{name}={row[name]}" for name in names if row[name] is not None)
    return comparison(runs, settings) if runs else None
