"""What to train: a new run, or an earlier one with ``python train.py resume=RUN``.

A resumed run takes everything from its checkpoint: config, corpus checksum, weights, optimiser, scheduler, carried
state, position in the epoch, random states, and the rows of ``metrics.csv``. On the CPU, with the same number of
threads, the result is bit for bit that of an uninterrupted run.
"""

from __future__ import annotations

import math
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from charlm.checkpoint.format import Checkpoint
from charlm.checkpoint.loading import load_checkpoint
from charlm.checkpoint.paths import find_resume_checkpoint, folder_of
from charlm.data.options import DataOptions
from charlm.errors import UsageError
from charlm.output import counted
from charlm.run.compose import Job
from charlm.run.environment import RANK
from charlm.run.init_from import open_start
from charlm.run.instantiate import build_corpus, escape, with_known_arguments
from charlm.run.settings import Settings, check_settings
from charlm.run.suggest import option_of
from charlm.run.trust import check_targets
from charlm.text.corpus import Corpus
from charlm.text.download import Unavailable

# What a resumed run may change: how long and where it trains, what it reports, and the location of its text.
OVERRIDABLE = (
    "resume",
    "trainer.max_epochs",
    "trainer.accelerator",
    "trainer.strategy",
    "trainer.devices",
    "trainer.num_nodes",
    "trainer.threads",
    "trainer.log_every_n_steps",
    "checkpoint",
    "logger",
    "data.path",
    "data.paths",
)

# What resuming needs besides the settings, with the types of each.
RECORD = {"model": (str, type(None)), "substituted": (bool,), "sweep": (str, type(None)), "overrides": (list,)}


@dataclass(frozen=True)
class Plan:
    """What to train and where. `record` has the keys of `RECORD`; `checkpoint` is None for a new run.

    A new run with ``init_from`` starts from the weights in `start`.
    """

    settings: Settings
    corpus: Corpus
    folder: Path
    record: dict[str, Any]
    header: dict[str, str]
    notices: list[str]
    checkpoint: Path | None = None
    start: Checkpoint | None = None
    parallel: int = 1  # runs at once on this machine


def fresh(settings: Settings, job: Job) -> Plan:
    """A new run. Raises UsageError if its folder already holds a run."""
    folder = Path(os.path.relpath(job.folder))
    if RANK == 0:  # the folder is not that of other ranks
        check_unused(folder)
    start = None
    if settings.init_from is not None:
        settings, start = open_start(settings, job.given)
    settings = with_known_arguments(settings, job.given)
    corpus, data, substitution = load_corpus(settings.data, job)
    settings = settings.model_copy(update={"data": data})
    record = {
        "model": job.model if start is None else str(start.run.get("model"))[:80],
        "substituted": bool(substitution),
        "sweep": job.sweep.name if job.sweep is not None else None,
        "overrides": job.overrides,
    }
    header = {} if job.number is None else {"job": f"{job.number}, {' '.join(job.overrides)}"}
    notices = [substitution] if substitution else []
    return Plan(settings, corpus, folder, record, header, notices, start=start, parallel=job.parallel)


def load_corpus(options: DataOptions, job: Job) -> tuple[Corpus, DataOptions, str]:
    """The corpus, its options, and a notice if the corpus was substituted.

    Only the default corpus is substituted, if it cannot be downloaded; never one that the user or an experiment names.
    """
    try:
        return build_corpus(options), options, ""
    except Unavailable as error:
        if job.substitute is None:
            raise
        substitute = job.substitute().data
        line = (
            f"NO {options.name.upper()}: {error}. TRAINING ON {substitute.name.upper()} INSTEAD, "
            f"the reference text that came with your Python."
        )
    return build_corpus(substitute), substitute, line


def holds_a_run(folder: Path) -> bool:
    """Whether a run has begun in `folder`."""
    return any((folder / name).exists() for name in ("checkpoints", "summary.json", "metrics.csv", "samples.txt"))


def check_unused(folder: Path) -> None:
    """Raise UsageError if `folder` holds a run."""
    if holds_a_run(folder):
        raise UsageError(f"{folder} already holds a run: choose another hydra.run.dir, or use resume={folder}")


def resumed(settings: Settings, job: Job) -> Plan:
    """The run that ``settings.resume`` names, with its own settings.

    Raises UsageError for a checkpoint that cannot be used, and if the run would not be the same.
    """
    if job.number is not None:
        raise UsageError("resume= resumes one run: leave out -m")
    path = find_resume_checkpoint(settings.resume)
    folder = Path(os.path.relpath(folder_of(path)))
    if RANK == 0 and job.folder.resolve() != folder.resolve():
        raise UsageError("a resumed run stays in its own folder: leave out hydra.run.dir")
    opened = load_checkpoint(path)
    if not opened.run:
        raise UsageError(
            f"{path} was not written by train.py: resume it with trainer.fit(…, ckpt_path=…) of your own Trainer, or "
            f"start a new run from its weights with init_from={path}"
        )
    if opened.run.keys() != RECORD.keys() or not all(type(opened.run[name]) in kinds for name, kinds in RECORD.items()):
        raise UsageError(f"{path} was written by an older charlm, which could not resume: start a new run")
    if opened.config.get("model") != opened.model:  # which could ask for more memory than the file has
        raise UsageError(f"{path} is damaged: its config describes another model than its weights belong to")
    # Before anything is changed: what the user types may name any class. The model's was checked when it was loaded,
    # and a logger that the user replaces is not built.
    skipped = {"model", "logger"} if "logger" in job.given else {"model"}
    check_targets({name: section for name, section in opened.config.items() if name not in skipped})
    saved, notices = change(opened.config, settings, job.overrides, opened.run["overrides"])
    saved = with_known_arguments(saved, job.given)
    try:
        corpus = build_corpus(saved.data)
    except UsageError as error:
        raise UsageError(f"{error} (if the text of this run has moved, add data.path=WHERE)") from None
    if corpus.sha256 != opened.corpus.get("sha256"):
        raise UsageError(
            f"{corpus.source} is not the text that this run was trained on: its SHA-256 is {corpus.sha256}, not "
            f"{opened.corpus.get('sha256')}; restore the old text, or start a new run"
        )
    return Plan(
        saved, corpus, folder, opened.run, {"resumed": f"from {path.name}"}, notices, path, parallel=job.parallel
    )


def change(
    saved: dict[str, Any], settings: Settings, overrides: list[str], before: list[str]
) -> tuple[Settings, list[str]]:
    """`saved` with the values that `overrides` change, and notices for the user.

    Raises UsageError for what a resumed run cannot change. Overrides that the run was started with may be repeated.
    """
    changed, trainer = OmegaConf.create(escape(saved)), check_settings(saved).trainer
    planned = trainer.max_epochs
    asked = OmegaConf.create(escape(settings.model_dump()))
    for override in overrides:
        key = option_of(override)
        if not any(key == option or key.startswith(f"{option}.") for option in OVERRIDABLE):
            if override not in before and OmegaConf.select(asked, key) != OmegaConf.select(changed, key):
                raise UsageError(
                    f"{override} cannot change in a resumed run, which keeps its own config; only "
                    f"{', '.join(OVERRIDABLE[1:])} can: start a new run, or leave it out"
                )
        elif key != "resume":
            value = OmegaConf.select(asked, key)
            if value == "auto" and key == "trainer.max_epochs":  # it was chosen when the run began
                continue
            # In resolved settings, the corpus has its own copy of the path.
            for place in {key, key.replace("data.", "data.corpus.")}:
                OmegaConf.update(changed, place, value, merge=False)
    result = check_settings(OmegaConf.to_container(changed, resolve=True))
    notices, epochs, threads = [], result.trainer.max_epochs, result.trainer.threads
    if trainer.threads not in (None, threads):
        notices.append(
            f"trainer.threads={threads}, but this run began with {trainer.threads}: sums are rounded differently, so "
            f"the result is not bit for bit that of an uninterrupted run"
        )
    if result.trainer.world != trainer.world:
        notices.append(
            f"this run trained in {counted(trainer.world, 'process')} before and goes on in {result.trainer.world}: "
            f"the rows of its batches and their states are cut anew, and random numbers (dropout) start anew, so the "
            f"result is not bit for bit that of an uninterrupted run"
        )
    if not (isinstance(epochs, int) and isinstance(planned, int)):
        raise UsageError("the checkpoint is damaged: it does not record its number of epochs")
    if epochs < planned:
        raise UsageError(
            f"trainer.max_epochs={epochs} is less than the run's {planned}: a resumed run can only get longer"
        )
    scheduler = result.schedule.scheduler or {}
    if epochs > planned and "total_steps" in scheduler:
        name = str(scheduler["_target_"]).rpartition(".")[2]
        raise UsageError(
            f"trainer.max_epochs={epochs}: {name} was made for {planned} epochs and cannot be extended, start a new run"
        )
    made_for = scheduler.get("epochs")
    if made_for not in (None, epochs):
        after, lr = "the learning rate stays constant", result.optimizer.get("lr") or math.nan
        end = scheduler.get("eta_min", math.nan)
        if "final_div_factor" in scheduler:  # see `charlm.training.warmups.one_cycle`
            end = lr / (scheduler["div_factor"] * scheduler["final_div_factor"])
        if end < lr / 1000:
            after = (
                f"the learning rate stays at {end:.2g}, too low to learn anything; to train on, start a new run with "
                f"init_from and a scheduler of its own"
            )
        notices.append(f"the scheduler was made for {made_for} epochs: after them {after}")
    return result, notices
