"""From settings to the objects of a run: data, model, callbacks, trainer."""

from __future__ import annotations

import contextlib
import logging
import math
import os
from collections.abc import Iterable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.plugins.environments import LightningEnvironment
from pytorch_lightning.profilers import PassThroughProfiler

from charlm.checkpoint.building import MOST_TENSORS, at_most, build_network
from charlm.checkpoint.format import pack
from charlm.checkpoint.storage import Store
from charlm.data.module import CharDataModule
from charlm.data.options import DataOptions
from charlm.data.sizes import choose_epochs
from charlm.errors import UsageError, as_usage_error
from charlm.models.network import Network
from charlm.run.environment import BY_TORCHRUN
from charlm.run.instantiate import instantiate, resolve_target, signature
from charlm.run.settings import ScheduleOptions, Settings, TrainerOptions
from charlm.text.corpus import Corpus
from charlm.training.checkpoint_io import StoreIO
from charlm.training.module import CharLM
from charlm.training.schedulers import check_interval


def build_callbacks(sections: Mapping[str, Any]) -> dict[str, pl.Callback]:
    """The callbacks that ``callbacks`` describes, by name."""
    built = {name: instantiate(f"callbacks.{name}", section) for name, section in sections.items() if section}
    for name, callback in built.items():
        if not isinstance(callback, pl.Callback):
            raise UsageError(
                f"callbacks.{name} is not a callback: its _target_ must name a subclass of pytorch_lightning.Callback"
            )
    return built


def check_run(callbacks: Mapping[str, pl.Callback], data: CharDataModule, *, validate: bool) -> None:
    """Call the `check_run` of each callback that has one: it raises UsageError for a run that it cannot serve."""
    for name, callback in callbacks.items():
        if check := getattr(callback, "check_run", None):
            with as_usage_error(f"callbacks.{name}"):
                check(data, validate=validate)


def build_data(options: DataOptions, corpus: Corpus, seed: int) -> CharDataModule:
    """The corpus, encoded and cut into batches."""
    with as_usage_error("data"):
        return CharDataModule.of(corpus, options, seed)


def with_chosen_sizes(settings: Settings, data: CharDataModule) -> tuple[Settings, str]:
    """`settings` with the numbers that were chosen for ``auto``, and a line that says which they are ("" if none)."""
    chosen = [
        f"{name.replace('_', ' ')} {getattr(data, name)}" for name in ("batch_size", "bptt") if name in data.chosen
    ]
    trainer = settings.trainer
    if trainer.max_epochs == "auto":
        steps = steps_per_epoch(trainer, len(data.train_dataloader()))
        epochs = choose_epochs(data.options, data.characters, steps)
        trainer = trainer.model_copy(update={"max_epochs": epochs})
        if data.options.path or data.options.paths:
            chosen.append(f"{epochs} epochs")
    line = f"{', '.join(chosen)} for {data.characters:,} training characters" if chosen else ""
    return settings.model_copy(update={"data": data.options, "trainer": trainer}), line


def steps_per_epoch(trainer: TrainerOptions, batches: int) -> int:
    """The number of optimiser steps in an epoch of `batches` batches under Lightning's limits."""
    limit = trainer.overfit_batches or trainer.limit_train_batches
    if isinstance(limit, int):
        batches = min(batches, limit)
    elif isinstance(limit, float):
        batches = int(batches * limit)
    return max(1, math.ceil(batches / trainer.accumulate_grad_batches))


def build_model(
    settings: Settings, network: Network, data: CharDataModule, corpus: dict[str, Any], run: dict[str, Any]
) -> CharLM:
    """The LightningModule with its optimiser and scheduler. Raises UsageError for invalid arguments."""
    optimizer = instantiate("optimizer", settings.optimizer)
    scheduler = instantiate("schedule.scheduler", settings.schedule.scheduler)
    check_interval(scheduler, settings.schedule.interval)
    if str(settings.trainer.precision).endswith("-mixed") and getattr(optimizer, "keywords", {}).get("fused"):
        optimizer = partial(optimizer, fused=False)  # Lightning cannot clip the scaled gradients of a fused optimiser
    entry = pack(settings.model, data.vocab, data.normalisation, settings.model_dump(), corpus, run)
    model = CharLM(
        network,
        optimizer,
        scheduler=scheduler,
        interval=settings.schedule.interval,
        groups=settings.parameter_groups,
        objective=settings.objective,
        entry=entry,
    )
    model.configure_optimizers()  # raises for an invalid argument before training
    return model


def build_checked_network(
    spec: dict[str, Any], data: CharDataModule, trust: Iterable[str] | None, parallel: int = 1
) -> Network:
    """The network of `spec`. Raises UsageError if it does not fit in memory, or not the batches of `data`.

    `trust` is that of `build_network`; the memory is shared by so many as `parallel` runs.
    """
    check_size(spec, len(data.vocab), trust, parallel)
    network = build_network(spec, len(data.vocab), trust)
    if network.window and (data.mode, data.bptt) != ("windows", network.window):
        raise UsageError(
            f"this model predicts only after a window of {network.window} characters: it needs "
            f"data=nietzsche_windows, or data=text_windows for your own text, with data.bptt={network.window}, "
            f"not {data.mode} of {data.bptt}"
        )
    return network


def fill_in_lengths(schedule: ScheduleOptions, epochs: int, steps_per_epoch: int) -> ScheduleOptions:
    """`schedule` with the run's length in those of its scheduler's arguments that are lengths.

    One that is set is kept: a resumed run's scheduler is as long as when the run began.
    """
    if schedule.scheduler is None:
        return schedule
    taken = signature(resolve_target("schedule.scheduler", schedule.scheduler["_target_"])) or {}
    lengths = {"epochs": epochs, "steps_per_epoch": steps_per_epoch, "total_steps": epochs * steps_per_epoch}
    given = {name: value for name, value in schedule.scheduler.items() if value is not None}
    missing = {name: length for name, length in lengths.items() if name in taken and name not in given}
    return schedule.model_copy(update={"scheduler": schedule.scheduler | missing})


def check_size(spec: dict[str, Any], vocab_size: int, trust: Iterable[str] | None = (), parallel: int = 1) -> None:
    """Raise UsageError for a network that does not fit in memory, before allocating any."""
    try:
        with torch.device("meta"), at_most(MOST_TENSORS, "are allowed"), torch.random.fork_rng(devices=[]):
            count = sum(p.numel() for p in build_network(spec, vocab_size, trust).parameters())
    except UsageError as error:
        if "meta" in str(error):  # its constructor reads a tensor, which has no values there
            return
        raise
    needed, available = 8 * count, memory() / parallel  # weights and gradients, four bytes each
    if needed > available:
        each, fewer = (f" for each of {parallel} jobs", ", or the number of jobs at once") if parallel > 1 else ("", "")
        raise UsageError(
            f"model: {count:,} parameters need {needed / 1e9:,.1f} GB to train, but there are only "
            f"{available / 1e9:,.1f} GB{each}: lower model.hidden_size, model.embedding_size or model.layers{fewer}"
        )


def memory() -> float:
    """The memory in bytes that this process may use: the machine's, or the limit set by a container or the user."""
    limits: list[float] = [math.inf]
    with contextlib.suppress(ImportError, AttributeError):  # not on Windows
        import resource

        limits.append(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))
        limits.append(resource.getrlimit(resource.RLIMIT_AS)[0])
    with contextlib.suppress(OSError, ValueError):  # no such file, or "max"
        limits.append(int(Path("/sys/fs/cgroup/memory.max").read_text()))
    return min(limit for limit in limits if limit > 0)


class _NoProfiler(PassThroughProfiler):
    """A profiler that costs nothing: Lightning calls it some sixty times per step."""

    _nothing = contextlib.nullcontext()

    def profile(self, action_name: str) -> Any:  # a context manager; Lightning only enters and leaves it
        return self._nothing


def build_trainer(
    options: TrainerOptions, folder: Path, callbacks: list[pl.Callback], store: Store | None, *, validate: bool
) -> pl.Trainer:
    """Lightning's Trainer without its own output; `Terminal` prints instead, and checkpoints are written to `store`.

    Without a `store`, there are no checkpoints.
    """
    for name in ("pytorch_lightning", "lightning_fabric"):
        logging.getLogger(name).setLevel(logging.ERROR)
    arguments = {"profiler": _NoProfiler(), **options.model_dump(exclude_none=True, exclude={"threads"})}
    if options.accelerator == "auto":
        # Not Apple's MPS: it has no float64 for exact sums, and small recurrent networks are slower there.
        arguments["accelerator"] = "cuda" if torch.cuda.is_available() else "cpu"
    if not validate:
        arguments["limit_val_batches"] = 0
    plugins: list[Any] = [] if store is None else [StoreIO(store)]
    if options.world == 1:
        arguments["strategy"] = "auto"
    elif not BY_TORCHRUN:
        plugins.append(LightningEnvironment())  # within a Slurm job, too
    with as_usage_error("trainer"):
        trainer = pl.Trainer(
            **arguments,
            default_root_dir=folder,
            logger=False,
            enable_checkpointing=store is not None,
            plugins=plugins or None,
            callbacks=callbacks,
            enable_progress_bar=False,
            enable_model_summary=False,
            num_sanity_val_steps=0,
        )
    if options.world > 1:
        # After a SIGTERM, Lightning's handler would take part in a broadcast, whatever the other ranks are doing.
        connector: Any = trainer._signal_connector
        connector.register_signal_handlers = lambda: None
    return trainer
