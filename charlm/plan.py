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

from charlm import checkpoint
from charlm.config import check_sections, load_corpus, make_corpus, plain
from charlm.corpus import Corpus
from charlm.errors import UsageError
from charlm.runs import find, folder_of

# What a resumed run may change: how long and where it trains, what it reports, and where its text lies now.
FREE = (
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


@dataclass(frozen=True)
class Plan:
    """What to train, where, and from which checkpoint if not from the beginning.

    `record` is what a later resume needs besides the settings: names that the config does not hold.
    """

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
    check_free(folder)
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


def check_free(folder: Path) -> None:
    """Raise UsageError when `folder` holds a run. What was killed before its first checkpoint is none."""
    if any((folder / name).exists() for name in ("checkpoints", "summary.json", "metrics.csv", "samples.txt")):
        raise UsageError(f"{folder} holds a run already: choose another hydra.run.dir, or go on with resume={folder}")


def resumed(config: DictConfig) -> Plan:
    """A run that goes on. Raises UsageError where it would not be the same run."""
    hydra = HydraConfig.get()
    if hydra.mode == RunMode.MULTIRUN:
        raise UsageError("resume= goes on with one run: leave out -m")
    stopped = recall(config, list(hydra.overrides.task))
    if Path(hydra.runtime.output_dir).resolve() != stopped.folder.resolve():
        raise UsageError("a resumed run goes on in its own folder: leave out hydra.run.dir")
    config = OmegaConf.create(escape(stopped.settings))
    try:
        corpus = make_corpus(config)
    except UsageError as error:
        raise UsageError(f"{error} (if the text of this run has moved, add +data.path=WHERE)") from None
    if corpus.sha256 != stopped.corpus.get("sha256"):
        raise UsageError(
            f"{corpus.source} is not the text that this run began with: its SHA-256 is {corpus.sha256}, not "
            f"{stopped.corpus.get('sha256')}; bring back the old text, or start a new run"
        )
    folder = Path(os.path.relpath(stopped.folder))
    header = {"resumed": f"from {stopped.path.name}"}
    notices = []
    planned = OmegaConf.select(config, "schedule.scheduler.epochs")
    if planned is not None and planned != config.trainer.max_epochs:
        notices.append(f"the schedule was made for {planned} epochs: after them the rate stays as it is")
    return Plan(config, plain(config), corpus, folder, stopped.run, header, notices, stopped.path)


@dataclass(frozen=True)
class Stopped:
    """A run to go on with: the checkpoint, the run's folder, its settings and what else it recorded."""

    path: Path
    folder: Path
    settings: dict[str, Any]
    corpus: dict[str, Any]
    run: dict[str, Any]


def recall(config: DictConfig, overrides: list[str]) -> Stopped:
    """What the checkpoint of ``config.resume`` recorded, with those `overrides` that a resumed run may change.

    Raises UsageError for a checkpoint that cannot be used and for overrides that would make it another run.
    """
    path = find(config.resume)
    opened = checkpoint.read(path)
    if not opened.run:
        raise UsageError(f"{path} was written by an older charlm, which could not resume: train anew")
    saved = OmegaConf.create(escape(opened.config))
    check_sections(saved)
    before = opened.run.get("overrides") or []
    for override in overrides:
        key = override.lstrip("+~").partition("=")[0]
        if not any(key == free or key.startswith(f"{free}.") for free in FREE):
            if override not in before:
                raise UsageError(
                    f"{override} cannot change in a resumed run, which goes on with its own config; only "
                    f"{', '.join(FREE[1:])} can: start a new run, or leave it out"
                )
        elif key != "resume":
            # The settings are resolved, so that the corpus has a path of its own.
            for place in (key, key.replace("data.", "data.corpus.")):
                OmegaConf.update(saved, place, OmegaConf.select(config, key), merge=False)
    epochs, planned = saved.trainer.max_epochs, opened.config["trainer"]["max_epochs"]
    if isinstance(epochs, int) and isinstance(planned, int) and epochs < planned:
        raise UsageError(f"trainer.max_epochs={epochs} cannot become less than the run's {planned}: it may only grow")
    return Stopped(path, folder_of(path), plain(saved), opened.corpus, opened.run)


def escape(value: Any) -> Any:
    """`value` with every ``${`` made plain text for OmegaConf: what a checkpoint holds is resolved already."""
    if isinstance(value, dict):
        return {key: escape(part) for key, part in value.items()}
    if isinstance(value, list):
        return [escape(part) for part in value]
    if isinstance(value, str):
        return re.sub(r"(\\*)\$\{", lambda found: 2 * found[1] + r"\${", value)
    return value
