"""Build everything a composed config describes, train it, and sum it up."""

from __future__ import annotations

import contextlib
import json
import logging
import math
import os
import sys
import time
import warnings
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from pytorch_lightning.callbacks import ModelCheckpoint
from pytorch_lightning.loggers import WandbLogger
from pytorch_lightning.profilers import PassThroughProfiler
from pytorch_lightning.utilities.exceptions import MisconfigurationException
from rich.console import Console

from charlm import checkpoint
from charlm.callbacks.history import History
from charlm.callbacks.samples import Samples
from charlm.callbacks.terminal import Terminal, describe, machine, report
from charlm.config import load_corpus, make, save_config
from charlm.corpus import Corpus
from charlm.data import CharDataModule
from charlm.errors import UsageError
from charlm.module import CharLM, parameter_count
from charlm.optim import Objective
from charlm.options import choice, number, whole
from charlm.schedules import check_interval


def run(config: DictConfig) -> float:
    """Train as `config` says; returns the best validation loss in nats per character.

    Without a validation split it is the best epoch's training loss. Raises UsageError for whatever the
    user can put right, before any work starts where that is possible.
    """
    console = Console(highlight=False, width=None if sys.stdout.isatty() else 120)
    hydra = HydraConfig.get()
    folder = Path(os.path.relpath(hydra.runtime.output_dir))
    if any((folder / name).exists() for name in ("checkpoints", "summary.json", "metrics.csv", "samples.txt")):
        raise UsageError(f"{folder} holds a run already: choose another hydra.run.dir")
    pl.seed_everything(whole("seed", config.seed, 0, 2**32 - 1), verbose=False)
    corpus, config, substitution = load_corpus(config)
    settings: dict[str, Any] = OmegaConf.to_container(config, resolve=True)  # type: ignore[assignment]
    data = build_data(settings, corpus)
    if config.schedule.steps_per_epoch is None:
        config.schedule.steps_per_epoch = steps_per_epoch(settings["trainer"], len(data.train_dataloader()))
        settings["schedule"] = OmegaConf.to_container(config.schedule, resolve=True)
    origin = {"name": str(settings["data"]["name"]), "source": corpus.source, "sha256": corpus.sha256}
    model = build_model(config, settings, data, origin)
    validate = bool(data.rows["val"]) and settings["trainer"].get("limit_val_batches", 1.0) != 0
    for notice in [substitution, *data.notices]:
        if notice:
            console.print(notice, style="bold yellow", markup=False)

    header = describe(settings, data, model.network, folder)
    sweep = None
    if hydra.mode == RunMode.MULTIRUN:
        sweep = Path(hydra.sweep.dir).name
        header = {"job": f"{hydra.job.num}, {' '.join(hydra.overrides.task)}", **header}
    observers = build_callbacks(config.callbacks)
    samples = next((c for c in observers if isinstance(c, Samples)), None)
    history = History(folder)
    best, last = checkpoints(folder / "checkpoints", "val/nats" if validate else "train/nats")
    # In this order: the row of an epoch is made before it is shown.
    callbacks = [history, *observers, Terminal(console, header, history, samples), best, last]

    trainer = build_trainer(settings["trainer"], folder, callbacks, validate=validate)
    save_config(config, folder)
    started = time.perf_counter()
    with quiet(), logging_to(trainer, config.logger, folder=folder, config=settings, sweep=sweep):
        fit(trainer, model, data)
        if not history.rows:
            raise UsageError("trainer: these limits leave nothing to train")
        test_nats = evaluate(trainer, model, data, best) if data.rows["test"] else None
    summary = {
        **best_losses(history, validated=validate),
        **({} if test_nats is None else {"test_nats": test_nats}),
        "epochs": len(history.rows),
        "steps": trainer.global_step,
        "parameters": parameter_count(model.network),
        "characters": history.characters,
        "characters_per_second": history.characters / history.training_seconds,
        "fit_seconds": history.fit_seconds,
        "seconds": time.perf_counter() - started,
        "model": hydra.runtime.choices.get("model"),
        "corpus": origin["name"],
        "corpus_substituted": bool(substitution),
        "leaky": data.leaky,
        "corpus_source": corpus.source,
        "corpus_sha256": corpus.sha256,
        "seed": config.seed,
        "device": str(trainer.strategy.root_device),
        "machine": machine(trainer.strategy.root_device),
        "best_checkpoint": relative(best.best_model_path),
        "last_checkpoint": relative(last.best_model_path),
    }
    finite = {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in summary.items()}
    (folder / "summary.json").write_text(json.dumps(finite, indent=2, allow_nan=False) + "\n")
    report(console, summary)
    return summary["best_val_nats"] if validate else summary["best_train_nats"]


def build_callbacks(node: DictConfig) -> list[pl.Callback]:
    """The observers that ``callbacks`` describes."""
    made = make(node) or {}
    for name, callback in made.items():
        if not isinstance(callback, pl.Callback):
            raise UsageError(f"callbacks.{name} is not a callback: it needs a _target_")
    return list(made.values())


def build_data(settings: dict[str, Any], corpus: Corpus) -> CharDataModule:
    """The data module that ``data`` describes."""
    options = {k: v for k, v in settings["data"].items() if k not in ("name", "corpus", "path", "paths", "encoding")}
    try:
        return CharDataModule(corpus, seed=settings["seed"], **options)
    except TypeError as error:
        raise UsageError(f"data: {error}") from None


def steps_per_epoch(trainer: dict[str, Any], batches: int) -> int:
    """How many times the optimiser moves in an epoch of `batches` batches under Lightning's limits."""
    limit = trainer.get("overfit_batches") or trainer.get("limit_train_batches")
    if isinstance(limit, int):
        batches = min(batches, limit)
    elif isinstance(limit, float):
        batches = int(batches * limit)
    return max(1, -(-batches // whole("trainer.accumulate_grad_batches", trainer.get("accumulate_grad_batches", 1), 1)))


def build_model(config: DictConfig, settings: dict[str, Any], data: CharDataModule, origin: dict[str, Any]) -> CharLM:
    """The network that ``model`` describes with its optimiser and schedule; refuses arguments that cannot be."""
    network = checkpoint.build_network(settings["model"], len(data.vocab))
    if network.context and (data.mode, data.bptt) != ("windows", network.context):
        raise UsageError(
            f"this model predicts only after a window of {network.context} characters: it needs "
            f"data.mode=windows data.bptt={network.context}, not {data.mode} of {data.bptt}"
        )
    number("optimizer.lr", config.optimizer.get("lr", 0))
    interval = choice("schedule.interval", config.schedule.interval, ("epoch", "step"))
    optimizer, schedule = make(config.optimizer), make(config.schedule.scheduler)
    check_interval(schedule, interval)
    if str(settings["trainer"]["precision"]).endswith("-mixed") and optimizer.keywords.get("fused"):
        optimizer = partial(optimizer, fused=False)  # Lightning cannot clip scaled gradients of a fused optimiser
    entry = checkpoint.pack(settings["model"], data.vocab, data.normalisation, settings, origin)
    try:
        objective = Objective(**settings["objective"])
    except TypeError as error:
        raise UsageError(f"objective: {error}") from None
    groups = settings["parameter_groups"] or {}
    model = CharLM(network, optimizer, schedule, interval, groups, objective, entry)
    model.configure_optimizers()  # a refused argument shows now
    return model


class _NoProfiler(PassThroughProfiler):
    """Lightning asks its profiler some sixty times a step; one shared context answers fastest."""

    _nothing = contextlib.nullcontext()

    def profile(self, action_name: str) -> contextlib.AbstractContextManager[None]:  # type: ignore[override]
        return self._nothing


def build_trainer(
    settings: dict[str, Any], folder: Path, callbacks: list[pl.Callback], *, validate: bool
) -> pl.Trainer:
    """Lightning's Trainer, quiet: what a person sees comes from `Terminal`."""
    logging.getLogger("pytorch_lightning").setLevel(logging.ERROR)
    if settings["accelerator"] == "auto":
        # Not Apple's MPS: it has no float64 for exact sums, and small recurrent networks are slower there.
        settings = {**settings, "accelerator": "cuda" if torch.cuda.is_available() else "cpu"}
    if not validate:
        settings = {**settings, "limit_val_batches": 0}
    devices = settings["devices"]
    if devices != 1 and not (isinstance(devices, list) and len(devices) == 1):
        raise UsageError(f"trainer.devices={devices}: a run trains on one device; give 1, or one number such as [0]")
    whole("trainer.max_epochs", settings["max_epochs"], 1)
    try:
        return pl.Trainer(
            **{"profiler": _NoProfiler(), **settings},
            default_root_dir=folder,
            logger=False,
            callbacks=callbacks,
            enable_progress_bar=False,
            enable_model_summary=False,
            num_sanity_val_steps=0,
        )
    except (TypeError, ValueError, MisconfigurationException) as error:
        raise UsageError(f"trainer: {error}") from None


def checkpoints(folder: Path, monitor: str) -> tuple[ModelCheckpoint, ModelCheckpoint]:
    """``best.ckpt``, after the validation with the lowest loss so far, and ``last.ckpt``, after each epoch."""
    at_epoch_end = monitor.startswith("train")
    common: dict[str, Any] = {
        "dirpath": folder,
        "enable_version_counter": False,
        "auto_insert_metric_name": False,
    }
    best = ModelCheckpoint(filename="best", monitor=monitor, save_on_train_epoch_end=at_epoch_end, **common)
    last = ModelCheckpoint(filename="last", monitor=None, save_on_train_epoch_end=True, **common)
    return best, last


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Without the two warnings that are of no use to the person at the terminal."""
    with warnings.catch_warnings():
        # We log on our own account, every `log_every_n_steps` steps, short epochs or not.
        warnings.filterwarnings("ignore", ".*is smaller than the logging interval.*")
        # Lightning 2.6 with torch 2.13: Lightning's own use of a name that torch is about to drop.
        warnings.filterwarnings("ignore", ".*LeafSpec.* is deprecated.*")
        yield


@contextlib.contextmanager
def logging_to(trainer: pl.Trainer, node: DictConfig, **context: Any) -> Iterator[None]:
    """Give the trainer the logger that ``logger`` describes; end the W&B run, so that the next job gets its own."""
    try:
        logger = make(node)(**context)
    except TypeError as error:
        raise UsageError(f"logger: {error}") from None
    trainer.loggers = [logger] if logger else []
    status = 1
    try:
        yield
        status = 0
    finally:
        if isinstance(logger, WandbLogger):
            import wandb

            wandb.finish(exit_code=status)


def fit(trainer: pl.Trainer, model: CharLM, data: CharDataModule) -> None:
    """Train. Raises KeyboardInterrupt when the user stops the run."""
    try:
        trainer.fit(model, datamodule=data)
    except SystemExit:  # how Lightning ends after an interrupt
        if trainer.interrupted:
            raise KeyboardInterrupt from None
        raise


def evaluate(trainer: pl.Trainer, model: CharLM, data: CharDataModule, best: ModelCheckpoint) -> float:
    """The test loss of the best checkpoint, nats per character."""
    network = checkpoint.read(best.best_model_path).network
    model.network.load_state_dict(network.state_dict())
    return float(trainer.test(model, datamodule=data, verbose=False)[0]["test/nats"])


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


def relative(path: str) -> str:
    """A path as seen from the current folder."""
    return os.path.relpath(path) if path else ""
