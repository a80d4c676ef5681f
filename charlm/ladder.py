"""Run the lesson's ladder and compare it with the lesson: python -m charlm.ladder

Every row is trained by ``train.py`` in a process of its own, in a folder of its own; a row whose folder
holds a finished run of the same command is not run again. The table is written anew after every row.
"""

from __future__ import annotations

import argparse
import csv
import hashlib
import json
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

import charlm
from charlm.cli import exit_cleanly
from charlm.errors import UsageError
from charlm.ladder_table import render
from charlm.lesson import LADDER, STEPS, Entry

ROOT = Path(charlm.__file__).parents[1]
ORACLE, ORACLE_ROW = Path("tests/oracle.py"), "21"
POLL = 0.5  # seconds between two looks at how far a row is


def parser() -> argparse.ArgumentParser:
    """The command line."""
    p = argparse.ArgumentParser(
        prog="python -m charlm.ladder", description="Train every system of the lesson and compare it with the lesson."
    )
    p.add_argument("--rows", help="only these, for example 12,14 (default: all)")
    p.add_argument("--long", action="store_true", help="with the 63 epochs of row 16, which take hours on a CPU")
    p.add_argument("--folder", type=Path, default=Path("runs/ladder"), help="where the runs go (default: %(default)s)")
    p.add_argument(
        "--output", type=Path, help="the table (default: docs/ladder.md, or FOLDER/ladder.md when there are overrides)"
    )
    p.add_argument("overrides", nargs="*", help="Hydra overrides for every row, for example trainer.max_epochs=1")
    return p


def main() -> None:
    """Run what is missing, write the table."""
    args = parser().parse_args()
    asked = numbers(args.rows)
    entries = chosen(asked, args.long)
    if not (ROOT / "train.py").is_file():
        raise UsageError(
            f"there is no train.py in {ROOT}: run the ladder from a clone, installed with pip install -e ."
        )
    output = args.output or (args.folder / "ladder.md" if args.overrides else ROOT / "docs/ladder.md")
    output.parent.mkdir(parents=True, exist_ok=True)
    record = output.with_suffix(".json")
    results = recorded(record)
    bar = Progress(
        TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), console=Console()
    )
    with bar:
        rows = bar.add_task("rows", total=len(entries) + (ORACLE_ROW in asked))
        for entry in entries:
            run = find_run(entry, args.folder, args.overrides) or train(entry, args.folder, args.overrides, bar)
            results[entry.row] = measure(entry, run, args.overrides)
            bar.console.print(f"row {entry.row}: {entry.system}", markup=False, highlight=False)
            bar.advance(rows)
            write(output, record, results)
        if ORACLE_ROW in asked:
            results[ORACLE_ROW] = oracle()
            bar.advance(rows)
            write(output, record, results)
    print(f"the table is in {output}")


def numbers(rows: str | None) -> set[str]:
    """The row numbers in "12,14"; all without it. Raises UsageError for rows that are not there."""
    known = {entry.row.split(",")[0] for entry in LADDER} | {ORACLE_ROW}
    asked = known if rows is None else {row.strip() for row in rows.split(",")}
    for row in sorted(asked - known):
        raise UsageError(f"--rows {rows}: there is no row {row!r}; rows go from 1 to 21")
    return asked


def chosen(asked: set[str], long: bool) -> list[Entry]:
    """The entries of the rows `asked`; the long run, which holds a shorter one, goes first."""
    wanted = [entry for entry in LADDER if entry.row.split(",")[0] in asked and (long or not entry.long)]
    return sorted(wanted, key=lambda entry: not entry.long)


def recorded(record: Path) -> dict[str, Any]:
    """The results so far."""
    try:
        return json.loads(record.read_text(encoding="utf-8")) if record.is_file() else {}
    except ValueError:
        raise UsageError(f"{record} is damaged: delete it, and the ladder reads the finished runs again") from None


def command(entry: Entry, overrides: list[str]) -> list[str]:
    """The overrides that train an entry."""
    return [f"experiment={entry.experiment}", *entry.overrides, *overrides]


def place(entry: Entry, folder: Path, overrides: list[str]) -> Path:
    """Where an entry is trained: every command has a folder of its own."""
    parts = [entry.experiment, *entry.overrides, *overrides]
    name = "-".join(re.sub(r"[^\w.]+", "_", part).strip("_") for part in parts)
    if len(name) > 100:
        name = f"{name[:80]}-{hashlib.sha256(name.encode()).hexdigest()[:16]}"
    return folder / name


def find_run(entry: Entry, folder: Path, overrides: list[str]) -> Path | None:
    """The folder of a finished run of this entry, or of a longer one that holds it."""
    longer = [e for e in LADDER if entry.epochs and e.long and e.experiment == entry.experiment]
    for candidate in [entry, *longer]:
        run = place(candidate, folder, overrides)
        said = run / ".hydra/overrides.yaml"
        wanted = [*command(candidate, overrides), "logger=csv"]
        if (run / "summary.json").is_file() and said.is_file() and OmegaConf.load(said) == wanted:
            return run
    return None


def train(entry: Entry, folder: Path, overrides: list[str], bar: Progress) -> Path:
    """Train an entry in a process of its own; what it prints goes to a file beside its folder."""
    run = place(entry, folder, overrides).resolve()
    log = run.with_name(f"{run.name}.log")
    if (run / "summary.json").exists():
        raise UsageError(f"{run} holds a finished run of another command: move it away, or choose another --folder")
    if run.exists():
        shutil.rmtree(run)  # of a run that was interrupted
    log.parent.mkdir(parents=True, exist_ok=True)
    arguments = [*command(entry, overrides), "logger=csv", f"hydra.run.dir='{run}'"]
    task = bar.add_task(f"row {entry.row}, epochs", total=None)
    with log.open("w") as out:
        process = subprocess.Popen(
            [sys.executable, str(ROOT / "train.py"), *arguments], cwd=ROOT, stdout=out, stderr=subprocess.STDOUT
        )
        try:
            while process.poll() is None:
                time.sleep(POLL)
                bar.update(task, total=epochs_of(run), completed=len(read_csv(run / "metrics.csv")))
        except BaseException:
            process.terminate()
            process.wait()
            raise
        finally:
            bar.remove_task(task)
    if process.returncode or not (run / "summary.json").is_file():
        lines = log.read_text().strip().splitlines() or ["it said nothing"]
        raise UsageError(f"row {entry.row} ended with status {process.returncode}: {lines[-1]} (all it said: {log})")
    return run


def epochs_of(run: Path) -> int | None:
    """How many epochs a run is to have, once it knows."""
    config = run / ".hydra/config.yaml"
    epochs = OmegaConf.select(OmegaConf.load(config), "trainer.max_epochs") if config.is_file() else None
    return epochs or None  # the file may be half written


def read_csv(path: Path) -> list[dict[str, str]]:
    """The rows of a table; none where there is no file yet."""
    if not path.is_file():
        return []
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def measure(entry: Entry, run: Path, overrides: list[str]) -> dict[str, Any]:
    """All that the table says about an entry, from its run."""
    summary = json.loads((run / "summary.json").read_text())
    rows = read_csv(run / "metrics.csv")[: entry.epochs]
    weights = run / "checkpoints" / entry.checkpoint
    model = charlm.load(weights if weights.is_file() else run)
    answers = [[prompt, theirs, model.predictions(prompt)[-1].next] for prompt, theirs in entry.next.items()]
    for prompt, theirs in entry.positions.items():
        answers.append([prompt, theirs, "".join(p.next for p in model.predictions(prompt))])
    for prompt, theirs in entry.greedy.items():
        answers.append([prompt, theirs, model.generate(prompt, len(theirs), greedy=True)])
    return {
        "command": " ".join(["python train.py", *command(entry, overrides)]),
        "parameters": summary["parameters"],
        "ours": figures(entry, run, rows),
        "minutes": sum(float(row["seconds"]) for row in rows) / 60,
        "answers": answers,
        "by_position": model.score_by_position(text_of(model), entry.by_position) if entry.by_position else [],
        "writes": writing(model) if entry.writes else "",
        "machine": summary.get("machine", summary["device"]),
    }


def figures(entry: Entry, run: Path, rows: list[dict[str, str]]) -> list[float]:
    """Our figures beside the lesson's, in the entry's unit."""
    steps = read_csv(run / "csv/metrics.csv")
    logged = [float(row["train/nats_step"]) for row in steps if row.get("train/nats_step")]
    if entry.split == STEPS and len(logged) >= len(rows):  # else overrides have made epochs too short to log
        per_epoch = len(logged) // len(rows)
        picked = logged if len(rows) == 1 else logged[per_epoch - 1 :: per_epoch]
        return [value * entry.scale for value in picked]
    penalties = [float(row["train/penalty"]) for row in steps if row.get("train/penalty")] or [0.0] * len(rows)
    losses = [float(row[f"{entry.compared}_nats"]) for row in rows]
    return [(loss * entry.scale + penalty) * entry.factor for loss, penalty in zip(losses, penalties, strict=True)]


def text_of(model: charlm.LanguageModel) -> str:
    """The text that a run of ours was trained on."""
    from charlm.config import make

    return make(OmegaConf.create(model.config)["data"]["corpus"]).text


def writing(model: charlm.LanguageModel) -> str:
    """How a sample of 10,000 characters deals with quotes and numbered sections."""
    text = model.generate("", 10_000, temperature=0.8, seed=1)
    opened, closed = len(re.findall(r'(?<!\S)"\S', text)), len(re.findall(r'\S"(?!\w)', text))
    sections = len(re.findall(r"\n\d+\.? ", text))
    return f"in 10,000 sampled characters: {opened} quotes opened, {closed} closed, {sections} numbered sections opened"


def oracle() -> dict[str, Any]:
    """Row 21: the hand-derived gradients against autograd."""
    import torch

    from charlm.callbacks.terminal import machine

    started = time.perf_counter()
    done = subprocess.run([sys.executable, str(ROOT / ORACLE)], cwd=ROOT, capture_output=True, text=True)
    if done.returncode:
        raise UsageError(f"row 21: {ORACLE} failed: {(done.stderr.strip().splitlines() or ['no word'])[-1]}")
    return {
        "command": f"python {ORACLE}",
        "difference": json.loads(done.stdout),
        "minutes": (time.perf_counter() - started) / 60,
        "machine": machine(torch.device("cpu")),
    }


def write(output: Path, record: Path, results: dict[str, Any]) -> None:
    """The table, and the figures it is made of; an interrupt leaves the old ones whole."""
    for path, text in ((record, json.dumps(results, indent=1, ensure_ascii=False) + "\n"), (output, render(results))):
        half = path.with_name(f".{path.name}.tmp")
        half.write_text(text, encoding="utf-8")
        half.replace(path)


if __name__ == "__main__":
    with exit_cleanly():
        main()
