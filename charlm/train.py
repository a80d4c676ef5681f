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
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from pytorch_lightning.callbacks import ModelCheckpoint
from pytorch_lightning.loggers import WandbLogger
from rich.console import Console

from charlm import checkpoint
from charlm.build import build_callbacks, build_data, build_model, build_trainer, checkpoints, steps_per_epoch
from charlm.callbacks.history import History
from charlm.callbacks.samples import Samples
from charlm.callbacks.terminal import Terminal, describe, machine, report
from charlm.config import load_corpus, make, save_config
from charlm.data import CharDataModule
from charlm.errors import UsageError
from charlm.module import CharLM, parameter_count
from charlm.options import whole


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
    if config.schedule.steps_per_epoch is not None:
        raise UsageError("schedule.steps_per_epoch is filled in by the program: leave it null")
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
