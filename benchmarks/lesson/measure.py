"""Everything that the table shows about a row, measured from its run."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import charlm
from benchmarks.lesson.lesson import STEPS, Entry
from benchmarks.lesson.runs import ROOT, command, overrides_of, read_csv
from charlm.errors import UsageError

ORACLE = "tests.models.oracle"


def measure(entry: Entry, run: Path, overrides: list[str]) -> dict[str, Any]:
    """The results of an entry, from its run."""
    summary, trained = json.loads((run / "summary.json").read_text()), overrides_of(run)
    rows = read_csv(run / "metrics.csv")[: entry.epochs]
    if any(not row[f"{entry.compared}_nats"] for row in rows):
        raise UsageError(f"row {entry.row} compares the {entry.compared} loss, and this run has none: see {run}")
    weights = run / "checkpoints" / entry.checkpoint
    model = charlm.load(weights if weights.is_file() else run)
    answers = [[prompt, theirs, model.predictions(prompt)[-1].next] for prompt, theirs in entry.next.items()]
    for prompt, theirs in entry.positions.items():
        answers.append([prompt, theirs, "".join(p.next for p in model.predictions(prompt))])
    for prompt, theirs in entry.greedy.items():
        answers.append([prompt, theirs, model.generate(prompt, len(theirs), greedy=True)])
    return {
        "command": " ".join(["python train.py", *command(entry, overrides)[:-1]]),  # the logger changes no figure
        "taken_from": "" if trained == command(entry, overrides) else " ".join((trained or [])[:-1]),
        "parameters": summary["parameters"],
        "ours": figures(entry, run, rows),
        "minutes": sum(float(row["seconds"]) for row in rows) / 60,
        "answers": answers,
        "by_position": model.score_by_position(text_of(model), entry.by_position) if entry.by_position else [],
        "writes": writing(model) if entry.writes else "",
        "machine": summary.get("machine", f"{summary['device']} (threads not recorded)"),
    }


def figures(entry: Entry, run: Path, rows: list[dict[str, str]]) -> list[float]:
    """Our figures to compare with the lesson's, in the entry's unit."""
    steps = read_csv(run / "csv/metrics.csv")
    logged = [float(row["train/nats_step"]) for row in steps if row.get("train/nats_step")]
    if entry.split == STEPS and len(logged) >= len(rows):  # otherwise, overrides made the epochs too short to log
        per_epoch = len(logged) // len(rows)
        picked = logged if len(rows) == 1 else logged[per_epoch - 1 :: per_epoch]
        return [value * entry.scale for value in picked]
    penalties = [float(row["train/penalty"]) for row in steps if row.get("train/penalty")] or [0.0] * len(rows)
    losses = [float(row[f"{entry.compared}_nats"]) for row in rows]
    return [(loss * entry.scale + penalty) * entry.factor for loss, penalty in zip(losses, penalties, strict=True)]


def text_of(model: charlm.LanguageModel) -> str:
    """The text that `model` was trained on."""
    from charlm.data.options import DataOptions
    from charlm.run.instantiate import build_corpus

    return build_corpus(DataOptions(**model.config["data"])).text


def writing(model: charlm.LanguageModel) -> str:
    """Quotes and numbered sections in a sample of 10,000 characters."""
    text = model.generate("", 10_000, temperature=0.8, seed=1)
    opened, closed = len(re.findall(r'(?<!\S)"\S', text)), len(re.findall(r'\S"(?!\w)', text))
    sections = len(re.findall(r"\n\d+\.? ", text))
    return f"in 10,000 sampled characters: {opened} quotes opened, {closed} closed, {sections} numbered sections opened"


def oracle() -> dict[str, Any]:
    """Row 21: the hand-derived gradients against autograd."""
    import torch

    from charlm.training.callbacks.terminal import machine

    started = time.perf_counter()
    done = subprocess.run([sys.executable, "-m", ORACLE], cwd=ROOT, capture_output=True, text=True)
    if done.returncode:
        raise UsageError(f"row 21: {ORACLE} failed: {(done.stderr.strip().splitlines() or ['no message'])[-1]}")
    return {
        "command": f"python -m {ORACLE}",
        "difference": json.loads(done.stdout),
        "minutes": (time.perf_counter() - started) / 60,
        "machine": machine(torch.device("cpu")),
    }
