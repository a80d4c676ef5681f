"""What to train: a new run, or one that goes on with ``python train.py resume=RUN``.

A run that goes on takes everything from its checkpoint: config, corpus checksum, weights, optimiser, schedule,
carried state, place in the epoch, random states, and the rows of ``metrics.csv`` so far. The result is the same,
bit for bit, as if the run had never stopped (on the CPU, with the same number of threads).
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from charlm.checkpoint.loading import load_checkpoint
from charlm.checkpoint.paths import find_resume_checkpoint, folder_of
from charlm.errors import UsageError
from charlm.run.config import build_corpus, check_sections, load_corpus, plain
from charlm.text.corpus import Corpus

# What a resumed run may change: how long and where it trains, what it reports, and where its text lies now.
OVERRIDABLE = (
    "resume",
    "trainer.max_epochs",
    "trainer.accelerator",
    "trainer.devices",
    "trainer.log_every_n_steps",
    "checkpoint",
    "logger",
    "data.path",
    "data.paths",
)

RECORD = {"model", "substituted", "sweep", "overrides"}  # what a run needs to go on besides its settings


@dataclass(frozen=True)
class Plan:
    """What to train, where, and from which checkpoint if not from the beginning. `record` has the keys of `RECORD`."""

    config: DictConfig
    settings: dict[str, Any]
    corpus: Corpus
    folder: Path
    record: dict[str, Any]
    header: dict[str, str]
    notices: list[str]
    checkpoint: Path | None = None


def fresh(config: DictConfig) -> Plan:
    """A new run. Raises UsageError when its folder holds one already."""
    check_sections(config)
    hydra = HydraConfig.get()
    folder = Path(os.path.relpath(hydra.runtime.output_dir))
    check_unused(folder)
    if config.schedule.steps_per_epoch is not None:
        raise UsageError("schedule.steps_per_epoch is filled in by the program: leave it null")
    corpus, config, substitution = load_corpus(config)
    record = {
        "model": hydra.runtime.choices.get("model"),
        "substituted": bool(substitution),
        "sweep": None,
        "overrides": list(hydra.overrides.task),
    }
    header = {}
    if hydra.mode == RunMode.MULTIRUN:
        record["sweep"] = Path(hydra.sweep.dir).name
        header = {"job": f"{hydra.job.num}, {' '.join(hydra.overrides.task)}"}
    notices = [substitution] if substitution else []
    return Plan(config, plain(config), corpus, folder, record, header, notices)


def check_unused(folder: Path) -> None:
    """Raise UsageError when `folder` holds a run. What was killed before its first checkpoint is none."""
    if any((folder / name).exists() for name in ("checkpoints", "summary.json", "metrics.csv", "samples.txt")):
        raise UsageError(f"{folder} holds a run already: choose another hydra.run.dir, or go on with resume={folder}")


def resumed(config: DictConfig) -> Plan:
    """A run that goes on from the checkpoint that ``config.resume`` means, with its own config.

    Raises UsageError for a checkpoint that cannot be used, and where it would not be the same run.
    """
    hydra = HydraConfig.get()
    if hydra.mode == RunMode.MULTIRUN:
        raise UsageError("resume= goes on with one run: leave out -m")
    path = find_resume_checkpoint(config.resume)
    folder = Path(os.path.relpath(folder_of(path)))
    if Path(hydra.runtime.output_dir).resolve() != folder.resolve():
        raise UsageError("a resumed run goes on in its own folder: leave out hydra.run.dir")
    opened = load_checkpoint(path)
    if opened.run.keys() != RECORD or not isinstance(opened.run["overrides"], list):
        raise UsageError(f"{path} was written by an older charlm, which could not resume: train anew")
    saved = OmegaConf.create(escape(opened.config))
    check_sections(saved)
    notices = change(saved, config, list(hydra.overrides.task), opened.run["overrides"])
    try:
        corpus = build_corpus(saved)
    except UsageError as error:
        raise UsageError(f"{error} (if the text of this run has moved, add +data.path=WHERE)") from None
    if corpus.sha256 != opened.corpus.get("sha256"):
        raise UsageError(
            f"{corpus.source} is not the text that this run began with: its SHA-256 is {corpus.sha256}, not "
            f"{opened.corpus.get('sha256')}; bring back the old text, or start a new run"
        )
    header = {"resumed": f"from {path.name}"}
    return Plan(saved, plain(saved), corpus, folder, opened.run, header, notices, path)


def change(saved: DictConfig, config: DictConfig, overrides: list[str], before: list[str]) -> list[str]:
    """Take into `saved` what `overrides` ask for and `config` has; returns what the user should know.

    Raises UsageError for what a resumed run cannot change; what it was started with may be said again.
    """
    planned = saved.trainer.max_epochs
    for override in overrides:
        key = override.lstrip("+~").partition("=")[0]
        if not any(key == free or key.startswith(f"{free}.") for free in OVERRIDABLE):
            if override not in before:
                raise UsageError(
                    f"{override} cannot change in a resumed run, which goes on with its own config; only "
                    f"{', '.join(OVERRIDABLE[1:])} can: start a new run, or leave it out"
                )
        elif key != "resume":
            # The settings are resolved, so that the corpus has a path of its own.
            for place in {key, key.replace("data.", "data.corpus.")}:
                OmegaConf.update(saved, place, OmegaConf.select(config, key), merge=False)
    check_sections(saved)
    epochs = saved.trainer.max_epochs
    if isinstance(epochs, int) and isinstance(planned, int) and epochs < planned:
        raise UsageError(f"trainer.max_epochs={epochs} cannot become less than the run's {planned}: it may only grow")
    made_for = OmegaConf.select(saved, "schedule.scheduler.epochs")
    if made_for in (None, epochs):
        return []
    return [f"the schedule was made for {made_for} epochs: after them the rate stays as it is"]


def escape(value: Any) -> Any:
    """`value` with every ``${`` made plain text for OmegaConf: what a checkpoint holds is resolved already."""
    if isinstance(value, dict):
        return {key: escape(part) for key, part in value.items()}
    if isinstance(value, list):
        return [escape(part) for part in value]
    if isinstance(value, str):
        return re.sub(r"(\\*)\$\{", lambda found: 2 * found[1] + r"\${", value)
    return value
