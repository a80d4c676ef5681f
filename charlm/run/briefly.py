"""A few steps of training that leave no model, for the tasks that look at a run before it starts."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
from pytorch_lightning.profilers import Profiler
from rich.console import Console
from rich.progress import Progress

from charlm.output import print_facts
from charlm.run.assembly import build
from charlm.run.build import build_trainer
from charlm.run.compose import Job
from charlm.run.fitting import fit, quiet
from charlm.run.folder import claimed, save_config
from charlm.run.resume import fresh
from charlm.run.settings import Settings
from charlm.training import random_state
from charlm.training.callbacks.terminal import device_name
from charlm.training.interrupt import Interrupt
from charlm.training.module import CharLM

EPOCHS = 10**6  # the observer, or `steps`, ends training


class Stop(pl.Callback):
    """Raises Interrupted after the step in which `stopping` becomes true."""

    def __init__(self, stopping: Callable[[], bool]) -> None:
        self.interrupt = Interrupt(stopping)

    def on_train_batch_end(self, *_: Any) -> None:
        """Ask."""
        self.interrupt.check()


def train_briefly(
    console: Console,
    settings: Settings,
    job: Job,
    observer: Callable[[Callable[[], None]], pl.Callback],
    *,
    batches: int,
    steps: int = -1,
    prepare: Callable[[CharLM], None] = lambda model: None,
    profiler: Profiler | None = None,
) -> tuple[Path, str]:
    """Train a new model as `settings` describe, changed by `prepare`, without validation.

    `observer` makes a callback, which calls its argument after each of the expected `batches` (for the bar); training
    ends after `steps` optimiser steps or where the callback stops it. The random generators are restored. Returns the
    run folder and a description of the model. Raises UsageError like `charlm.run.experiment.run`.
    """
    before = random_state.collect()
    plan = fresh(settings, job)
    built = build(plan)
    prepare(built.model)
    unlimited = {"max_epochs": EPOCHS, "min_epochs": None, "max_steps": steps, "max_time": None}
    options = built.settings.trainer.model_copy(update=unlimited)
    with claimed(plan.folder, new=True), quiet(), Progress(console=console, transient=True) as bar:
        task = bar.add_task(settings.task, total=batches)
        callbacks = [observer(lambda: bar.advance(task)), Stop(job.stopping)]
        trainer = build_trainer(options, plan.folder, callbacks, None, validate=False)
        if profiler is not None:
            changed: Any = trainer
            changed.profiler = profiler
        for notice in [*plan.notices, *built.data.notices]:
            console.print(notice, style="bold yellow", markup=False)
        print_facts(console, {**built.header, "device": device_name(trainer.strategy.root_device)})
        console.print()
        save_config(built.settings, plan.folder, job, new=True)
        fit(trainer, built.model, built.data, None, {})
    random_state.restore(before)
    return plan.folder, built.header["model"]
