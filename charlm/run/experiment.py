"""One run from beginning to end: build, train, test, summarise."""

from __future__ import annotations

import contextlib
import functools
import json
import math
import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
from pytorch_lightning.loggers import WandbLogger
from rich.console import Console

from charlm.checkpoint.building import package_of
from charlm.checkpoint.paths import resume_command
from charlm.checkpoint.storage import NoStore, Store
from charlm.errors import UsageError, as_usage_error, first_line
from charlm.run.assembly import Built, build
from charlm.run.build import build_callbacks, build_trainer, check_run
from charlm.run.compose import Job
from charlm.run.cycles import combine_cycles
from charlm.run.environment import RANK
from charlm.run.fitting import evaluate, fit, quiet, resumable
from charlm.run.folder import claimed, save_config
from charlm.run.instantiate import instantiate, signature
from charlm.run.loggers import Wandb
from charlm.run.processes import following, others
from charlm.run.result import Result, best_losses, facts
from charlm.run.resume import Plan, fresh, resumed
from charlm.run.settings import Settings
from charlm.run.threads import own_threads
from charlm.run.together import Together, check_processes, check_rows, notices
from charlm.run.trust import trust_prefix
from charlm.training.callbacks.checkpoints import Checkpoints
from charlm.training.callbacks.divergence_guard import DivergenceGuard
from charlm.training.callbacks.early_stopping import EarlyStopping
from charlm.training.callbacks.history import History
from charlm.training.callbacks.picture import LossPicture
from charlm.training.callbacks.progress import Progress, state
from charlm.training.callbacks.pruning import Pruning
from charlm.training.callbacks.samples import Samples
from charlm.training.callbacks.terminal import Terminal, report
from charlm.training.interrupt import Interrupt
from charlm.training.schedulers import complete_cycles

REPORTERS = (Terminal, LossPicture, Samples)  # of several ranks, the first has them alone


@own_threads()
def run(settings: Settings, job: Job) -> Result:
    """Train as `settings` describe.

    Raises UsageError for mistakes that the user can fix, before training starts wherever possible, and Interrupted when
    the user stops the run.
    """
    console = new_console()
    plan = fresh(settings, job) if settings.resume is None else resumed(settings, job)
    check_processes(plan.settings.trainer, job)
    built = build(plan)
    settings, data, model, folder, record = built.settings, built.data, built.model, plan.folder, plan.record
    check_rows(settings.trainer, data)
    world, other = settings.trainer.world, RANK > 0
    validate = bool(data.rows["val"]) and settings.trainer.limit_val_batches != 0

    warn = functools.partial(console.print, style="bold yellow", markup=False)
    store = NoStore() if other else Store(lambda text: warn(f"warning: {text}"))
    interrupt, guard = Interrupt(job.stopping), DivergenceGuard()
    observers = build_callbacks(settings.callbacks)
    samples = next((c for c in observers.values() if isinstance(c, Samples)), None)
    if samples is not None:
        samples.store = store
    if plan.checkpoint is None:  # a run that began goes on
        check_run(observers, data, validate=validate)
    history = History(folder / "metrics.csv", store)
    monitor = "val/nats" if validate else "train/nats"

    def make_again() -> None:
        """Write what else belongs in the folder after it was deleted."""
        store.warn(f"{folder} was deleted: it is made again, but the best weights so far and other files are lost")
        history.best_nats = math.inf
        history.write()
        with contextlib.suppress(OSError):
            if not other:
                save_config(settings, folder, job, new=new)

    checkpoints = Checkpoints(folder / "checkpoints", monitor, interrupt, guard, settings.checkpoint, make_again)
    # The order matters: an epoch's row is added to the history before it is printed.
    terminal = Terminal(console, built.header, history, samples)
    curves = LossPicture(folder / "loss.png", history, store)
    pruning = [Pruning(job.hopeless)] if job.hopeless is not None and validate else []
    callbacks = [guard, history, *observers.values(), *pruning, terminal, curves, checkpoints]
    together = Together(settings, plan.corpus.sha256, folder, plan.checkpoint)
    if world > 1:
        built.header["processes"] = f"{world}, each with {data.rows['train'] // world} rows of a batch"
        callbacks = [together, *(c for c in callbacks if not (other and isinstance(c, REPORTERS)))]
    if job.report is not None:
        callbacks.append(Progress(history, job.report, job.between))
    trainer = build_trainer(settings.trainer, folder, callbacks, store, validate=validate)
    for notice in [*plan.notices, *data.notices, *notices(settings.trainer, model.network)]:
        warn(notice)

    if other:
        with following(lambda: together.folder), quiet(), interrupt.listening():
            fit(trainer, model, data, plan.checkpoint, observers)
        return Result(history.best_nats, folder, history.rows, {})

    new = plan.checkpoint is None
    trust = trust_prefix(settings.model_dump())
    with claimed(folder, new=new), resumable(trust + resume_command(folder), checkpoints):
        save_config(settings, folder, job, new=new)
        started = time.perf_counter()
        with quiet(), logging_to(trainer, settings, folder, record["sweep"]):
            listening = interrupt.listening() if job.signals else contextlib.nullcontext()
            with listening, others(settings.trainer):
                fit(trainer, model, data, plan.checkpoint, observers)
            with contextlib.suppress(Exception):  # a failing report must not cost the run its summary
                undeclared: Any = trainer
                console.print(undeclared.profiler.summary() or "", markup=False, end="")
            if not history.rows:
                raise UsageError(
                    "trainer.limit_train_batches or overfit_batches: these limits leave no batch to train on"
                )
            validate = math.isfinite(history.best_nats)
            stoppers = (c for c in [*observers.values(), *pruning] if isinstance(c, EarlyStopping | Pruning))
            stopped = next((c.reason for c in stoppers if c.reason), None)
            if line := ending(built, trainer, history, stopped):
                console.print(line)
            store.close()
            checkpoints.complete(trainer)
            if world > 1:  # the others have ended
                settings = settings.model_copy(update={"trainer": settings.trainer.alone()})
            tester = trainer if world == 1 else build_trainer(settings.trainer, folder, [], None, validate=validate)
            test_nats = evaluate(tester, model, data, checkpoints.best, settings) if data.rows["test"] else None
            combined = {}
            try:
                count = complete_cycles(trainer)
                combined = combine_cycles(folder / "checkpoints", count, data, settings, store, validate=validate)
            except Exception as error:  # the run itself is finished
                store.warn(f"the ends of the cycles could not be combined: {first_line(error)}")
        seconds = time.perf_counter() - started
        summary = {
            **best_losses(history, validated=validate),
            **({} if test_nats is None else {"test_nats": test_nats}),
            **combined,
            **facts(history, trainer, model, seconds),
            **({"pruned": pruning[0].reason} if pruning and pruning[0].reason else {}),
            **({"processes": world} if world > 1 else {}),
            **origin(plan, built),
            "best_checkpoint": os.path.relpath(checkpoints.best),
            "last_checkpoint": os.path.relpath(checkpoints.last),
        }
        finite = {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in summary.items()}
        if job.report is not None:  # also of a run that had nothing left to train
            job.report({**state(history, trainer), "seconds": summary["seconds"]})
        store.write(folder / "summary.json", (json.dumps(finite, indent=2, allow_nan=False) + "\n").encode())
        store.close()
    upload = next((logger.upload(folder) for logger in trainer.loggers if isinstance(logger, Wandb)), None)
    best_train = min(row["train_nats"] for row in history.rows)
    report(console, summary, best_train, len(data.vocab), trust, upload)
    nats = summary["best_val_nats"] if validate else summary["best_train_nats"]
    trusted = (package_of(settings.model["_target_"]),)
    return Result(nats, folder, history.rows, summary, trusted)


def ending(built: Built, trainer: pl.Trainer, history: History, stopped: str | None) -> str | None:
    """What to say of a run that had nothing left to train, or was `stopped` early; None of any other."""
    options = built.settings.trainer
    more = f"trainer.max_epochs={built.epochs + 1} or more continues it"
    if options.max_steps == trainer.global_step:
        more = f"trainer.max_steps={options.max_steps} ended it, and only a new run can be longer"
    if built.model.first_step in (None, trainer.global_step):
        return f"this run had already {stopped or f'finished its {len(history.rows)} epochs'}; {more}"
    return f"{stopped}; resume= with {more}" if stopped and trainer.should_stop else None


def origin(plan: Plan, built: Built) -> dict[str, Any]:
    """What was trained, on which text, and how it was asked for."""
    return {
        "model": plan.record["model"],
        "overrides": plan.record["overrides"],
        "learning_rate": built.settings.optimizer.get("lr"),
        "corpus": built.origin["name"],
        "corpus_substituted": plan.record["substituted"],
        "leaky": built.data.leaky,
        "corpus_source": plan.corpus.source,
        "corpus_sha256": plan.corpus.sha256,
        "seed": built.settings.seed,
    }


def new_console() -> Console:
    """The terminal, or lines of 120 columns in a file."""
    return Console(highlight=False, width=None if sys.stdout.isatty() else 120)


@contextlib.contextmanager
def logging_to(trainer: pl.Trainer, settings: Settings, folder: Path, sweep: str | None) -> Iterator[None]:
    """Attach the logger to the trainer, and finish a W&B run afterwards so that the next job gets its own.

    Our own loggers are functions that take the run; any other class takes only the arguments that the user gives.
    """
    built = instantiate("logger", settings.logger)
    if isinstance(built, functools.partial):
        run = {"folder": folder, "config": settings.model_dump(), "sweep": sweep}
        taken = signature(built.func) or {}
        with as_usage_error("logger"):
            built = built(**{name: value for name, value in run.items() if name in taken})
    trainer.loggers = [built] if built else []
    status = 1
    try:
        yield
        status = 0
    finally:
        if isinstance(built, WandbLogger):
            built.experiment.finish(exit_code=status)
