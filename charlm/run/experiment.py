"""Train what a composed config describes, and sum it up."""

from __future__ import annotations

import contextlib
import json
import math
import os
import sys
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from filelock import FileLock, Timeout
from omegaconf import DictConfig, OmegaConf
from pytorch_lightning.loggers import WandbLogger
from rich.console import Console

from charlm.checkpoint.building import package_of
from charlm.checkpoint.loading import load_checkpoint
from charlm.checkpoint.paths import resume_command
from charlm.checkpoint.storage import Store
from charlm.checks import check_int
from charlm.data.module import CharDataModule
from charlm.errors import UsageError
from charlm.run.build import build_callbacks, build_checkpoints, build_data, build_model, build_trainer, steps_per_epoch
from charlm.run.config import instantiate, save_config
from charlm.run.plan import check_unused, fresh, resumed
from charlm.training.callbacks.checkpoints import Checkpoints
from charlm.training.callbacks.divergence_guard import Diverged, DivergenceGuard
from charlm.training.callbacks.history import History
from charlm.training.callbacks.samples import Samples
from charlm.training.callbacks.terminal import Terminal, describe, machine, report
from charlm.training.interrupt import Interrupt
from charlm.training.module import CharLM, parameter_count


def run(config: DictConfig) -> float:
    """Train as `config` says; returns the best validation loss in nats per character.

    Without a validation split it is the best epoch's training loss. Raises UsageError for whatever the
    user can put right, before any work starts where that is possible, and Interrupted when the user stops it.
    """
    console = Console(highlight=False, width=None if sys.stdout.isatty() else 120)
    plan = resumed(config) if config.resume is not None else fresh(config)
    config, settings, corpus, folder = plan.config, plan.settings, plan.corpus, plan.folder
    pl.seed_everything(check_int("seed", config.seed, 0, 2**32 - 1), verbose=False)
    data = build_data(settings, corpus)
    config.schedule.steps_per_epoch = steps_per_epoch(settings["trainer"], len(data.train_dataloader()))
    settings["schedule"] = OmegaConf.to_container(config.schedule, resolve=True)
    origin = {"name": str(settings["data"]["name"]), "source": corpus.source, "sha256": corpus.sha256}
    trust = None if plan.checkpoint is None else ()  # the user's own word, or a file's
    model = build_model(config, settings, data, origin, plan.record, trust)
    validate = bool(data.rows["val"]) and settings["trainer"].get("limit_val_batches", 1.0) != 0

    store = Store(lambda text: console.print(f"warning: {text}", style="bold yellow", markup=False))
    interrupt, health = Interrupt(), DivergenceGuard()
    observers = build_callbacks(config.get("callbacks"))
    samples = next((c for c in observers if isinstance(c, Samples)), None)
    if samples is not None:
        samples.store = store
    history = History(folder / "metrics.csv", store)
    monitor = "val/nats" if validate else "train/nats"
    checkpoints = build_checkpoints(settings.get("checkpoint"), folder, monitor, interrupt, health)
    header = {**plan.header, **describe(settings, data, model.network, folder)}
    # In this order: the row of an epoch is made before it is shown.
    callbacks = [health, history, *observers, Terminal(console, header, history, samples), checkpoints]
    trainer = build_trainer(settings["trainer"], folder, callbacks, store, validate=validate)
    for notice in [*plan.notices, *data.notices]:
        console.print(notice, style="bold yellow", markup=False)

    new = plan.checkpoint is None
    with claimed(folder, new=new), resumable(folder, checkpoints):
        save_config(config, folder, plan.record["overrides"], new=new)
        started = time.perf_counter()
        with quiet(), logging_to(trainer, config.logger, folder=folder, config=settings, sweep=plan.record["sweep"]):
            with interrupt.listening():
                fit(trainer, model, data, plan.checkpoint)
            if not history.rows:
                raise UsageError("trainer: these limits leave nothing to train")
            if model.first_step in (None, trainer.global_step):
                more = f"trainer.max_epochs={config.trainer.max_epochs + 1} or more would go on"
                console.print(f"this run was done after {len(history.rows)} epochs; {more}")
            store.close()
            test_nats = evaluate(trainer, model, data, checkpoints.best, settings) if data.rows["test"] else None
        summary = {
            **best_losses(history, validated=validate),
            **({} if test_nats is None else {"test_nats": test_nats}),
            "epochs": len(history.rows),
            "steps": trainer.global_step,
            "parameters": parameter_count(model.network),
            "characters": history.characters,
            "characters_per_second": history.characters / history.training_seconds,
            "fit_seconds": history.fit_seconds,
            "seconds": time.perf_counter() - started + history.earlier_seconds,
            "model": plan.record["model"],
            "corpus": origin["name"],
            "corpus_substituted": plan.record["substituted"],
            "leaky": data.leaky,
            "corpus_source": corpus.source,
            "corpus_sha256": corpus.sha256,
            "seed": config.seed,
            "device": str(trainer.strategy.root_device),
            "machine": machine(trainer.strategy.root_device),
            "best_checkpoint": os.path.relpath(checkpoints.best),
            "last_checkpoint": os.path.relpath(checkpoints.last),
        }
        finite = {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in summary.items()}
        store.write(folder / "summary.json", (json.dumps(finite, indent=2, allow_nan=False) + "\n").encode())
        store.close()
    report(console, summary)
    return summary["best_val_nats"] if validate else summary["best_train_nats"]


@contextlib.contextmanager
def claimed(folder: Path, *, new: bool) -> Iterator[None]:
    """Keep every other process from training in `folder`. A process that is killed gives it free."""
    (folder / ".hydra").mkdir(exist_ok=True)
    try:
        with FileLock(folder / ".hydra/lock", timeout=0):
            if new:
                check_unused(folder)  # once more, now that no other process can come in between
            yield
    except Timeout:
        raise UsageError(f"{folder} is being trained by another process: let it end, or stop it") from None


@contextlib.contextmanager
def resumable(folder: Path, checkpoints: Checkpoints) -> Iterator[None]:
    """Say, when something stops the run, what there is to go on with."""
    try:
        yield
    except Diverged as error:
        kept = [os.path.relpath(path) for path in (checkpoints.best, checkpoints.last) if path.exists()]
        raise UsageError(f"{error}; from before that there is {' and '.join(kept)}") from None
    except UsageError:
        raise
    except BaseException:
        if checkpoints.last.exists():
            print(f"go on with\n  {resume_command(folder)}", file=sys.stderr)
        raise


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Without warnings that are of no use to the person at the terminal."""
    with warnings.catch_warnings():
        # We log on our own account, every `log_every_n_steps` steps, short epochs or not.
        warnings.filterwarnings("ignore", ".*is smaller than the logging interval.*")
        # It is: the data module keeps the place.
        warnings.filterwarnings("ignore", ".*your dataloader is not resumable.*")
        # Lightning 2.6 with torch 2.13: Lightning's own use of a name that torch is about to drop.
        warnings.filterwarnings("ignore", ".*LeafSpec.* is deprecated.*")
        yield


@contextlib.contextmanager
def logging_to(trainer: pl.Trainer, node: DictConfig, **context: Any) -> Iterator[None]:
    """Give the trainer the logger that ``logger`` describes; end the W&B run, so that the next job gets its own."""
    try:
        logger = instantiate(node)(**context)
    except TypeError as error:
        raise UsageError(f"logger: {error}") from None
    trainer.loggers = [logger] if logger else []
    status = 1
    try:
        yield
        status = 0
    finally:
        if isinstance(logger, WandbLogger):
            logger.experiment.finish(exit_code=status)


def fit(trainer: pl.Trainer, model: CharLM, data: CharDataModule, path: Path | None) -> None:
    """Train, from the checkpoint at `path` if there is one.

    Raises Interrupted after a signal, KeyboardInterrupt after a second one, and UsageError for a
    checkpoint that does not fit.
    """
    try:
        with interruptible(trainer):
            trainer.fit(model, datamodule=data, ckpt_path=path)
    except UsageError:
        raise
    except Exception as error:
        if isinstance(error, MemoryError | torch.OutOfMemoryError) or "can't allocate memory" in str(error):
            raise UsageError(
                f"there is not enough memory: lower data.batch_size={data.batch_size}, data.bptt={data.bptt} or "
                f"model.hidden_size"
            ) from None
        if path is None or model.first_step not in (None, trainer.global_step):
            raise
        what = " ".join(str(error).split())[:200]
        raise UsageError(f"{path} cannot be resumed, it is damaged: {type(error).__name__}: {what}") from None


def evaluate(trainer: pl.Trainer, model: CharLM, data: CharDataModule, best: Path, settings: dict[str, Any]) -> float:
    """The test loss of the best checkpoint, nats per character."""
    network = load_checkpoint(best, trust=[package_of(settings["model"]["_target_"])]).network
    model.network.load_state_dict(network.state_dict())
    with interruptible(trainer):
        return float(trainer.test(model, datamodule=data, verbose=False)[0]["test/nats"])


@contextlib.contextmanager
def interruptible(trainer: pl.Trainer) -> Iterator[None]:
    """Make a KeyboardInterrupt again of what Lightning makes of it."""
    try:
        yield
    except SystemExit:
        if trainer.interrupted:
            raise KeyboardInterrupt from None
        raise


def best_losses(history: History, *, validated: bool) -> dict[str, float]:
    """The best validation loss in nats, bits and perplexity; or the best training loss without validation."""
    if not validated:
        return {"best_train_nats": min(row["train_nats"] for row in history.rows)}
    nats = history.best_nats
    return {
        "best_val_nats": nats,
        "best_val_bpc": nats / math.log(2),
        "best_val_perplexity": math.exp(nats) if nats < 700 else math.inf,
    }
