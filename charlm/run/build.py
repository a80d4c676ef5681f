"""From a composed config to what a run is made of: data, model, callbacks, trainer."""

from __future__ import annotations

import contextlib
import logging
import math
import os
from collections.abc import Collection, Iterable
from functools import partial
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.profilers import PassThroughProfiler

from charlm.checkpoint.building import MOST_TENSORS, at_most, build_network
from charlm.checkpoint.format import pack
from charlm.checkpoint.storage import Store
from charlm.checks import check_choice, check_int, check_number
from charlm.data.module import CharDataModule
from charlm.data.options import DataOptions
from charlm.data.splits import split_sizes
from charlm.errors import UsageError, as_usage_error
from charlm.run.instantiate import instantiate, resolve_target, signature
from charlm.text.corpus import Corpus
from charlm.text.encoded import encode
from charlm.text.vocab import normalise
from charlm.training.callbacks.checkpoints import Checkpoints
from charlm.training.callbacks.divergence_guard import DivergenceGuard
from charlm.training.checkpoint_io import StoreIO
from charlm.training.interrupt import Interrupt
from charlm.training.module import CharLM
from charlm.training.objective import Objective
from charlm.training.schedulers import check_interval


def build_callbacks(node: Any, given: Collection[str]) -> dict[str, pl.Callback]:
    """The callbacks that ``callbacks`` describes, by name."""
    if not isinstance(node, dict | None):
        raise UsageError(f"callbacks={str(node)[:80]} must be a section with callbacks in it: see conf/callbacks/")
    built = {name: instantiate(f"callbacks.{name}", part, given) for name, part in (node or {}).items() if part}
    for name, callback in built.items():
        if not isinstance(callback, pl.Callback):
            raise UsageError(f"callbacks.{name} is not a callback: it needs a _target_")
    return built


def build_checkpoints(
    node: Any, folder: Path, monitor: str, interrupt: Interrupt, health: DivergenceGuard
) -> Checkpoints:
    """The callback that writes ``best.ckpt`` and ``last.ckpt``, as often as ``checkpoint`` says."""
    with as_usage_error("checkpoint"):
        return Checkpoints(folder / "checkpoints", monitor, interrupt, health, **(node or {}))


def build_data(settings: dict[str, Any], corpus: Corpus) -> CharDataModule:
    """The data module that ``data`` describes."""
    with as_usage_error("data"):
        options = DataOptions(**settings["data"])
        train = None
        if options.vocab_from == "train":
            train = split_sizes(len(normalise(corpus.text, options.lowercase)), options)["train"]
        text = encode(
            corpus,
            lowercase=options.lowercase,
            min_freq=options.min_freq,
            pad=options.pad,
            unk=options.unk,
            vocab_from_first=train,
        )
        return CharDataModule(text, options, seed=settings["seed"])


def steps_per_epoch(trainer: dict[str, Any], batches: int) -> int:
    """How many times the optimiser moves in an epoch of `batches` batches under Lightning's limits."""
    limit = trainer.get("overfit_batches") or trainer.get("limit_train_batches")
    if isinstance(limit, int):
        batches = min(batches, limit)
    elif isinstance(limit, float):
        batches = int(batches * limit)
    return max(
        1, -(-batches // check_int("trainer.accumulate_grad_batches", trainer.get("accumulate_grad_batches", 1), 1))
    )


def build_model(
    settings: dict[str, Any],
    data: CharDataModule,
    corpus: dict[str, Any],
    run: dict[str, Any],
    trust: Iterable[str] | None = (),
) -> CharLM:
    """The network that ``model`` describes with its optimiser and scheduler; refuses arguments that cannot be.

    `trust` is as in `build_network`.
    """
    check_size(settings["model"], len(data.vocab), trust)
    network = build_network(settings["model"], len(data.vocab), trust)
    if network.window and (data.mode, data.bptt) != ("windows", network.window):
        raise UsageError(
            f"this model predicts only after a window of {network.window} characters: it needs "
            f"data=nietzsche_windows, or data=text_windows for your own text, with data.bptt={network.window}, "
            f"not {data.mode} of {data.bptt}"
        )
    check_number("optimizer.lr", settings["optimizer"].get("lr", 0))
    interval = check_choice("schedule.interval", settings["schedule"]["interval"], ("epoch", "step"))
    given = {override.lstrip("+~").partition("=")[0] for override in run["overrides"]}
    optimizer = instantiate("optimizer", settings["optimizer"], given)
    schedule = instantiate("schedule.scheduler", settings["schedule"]["scheduler"], given)
    check_interval(schedule, interval)
    if str(settings["trainer"]["precision"]).endswith("-mixed") and optimizer.keywords.get("fused"):
        optimizer = partial(optimizer, fused=False)  # Lightning cannot clip scaled gradients of a fused optimiser
    entry = pack(settings["model"], data.vocab, data.normalisation, settings, corpus, run)
    with as_usage_error("objective"):
        objective = Objective(**(settings.get("objective") or {}))
    groups = settings.get("parameter_groups") or {}
    model = CharLM(network, optimizer, schedule, interval, groups, objective, entry)
    model.configure_optimizers()  # a refused argument shows now
    return model


def fill_in_lengths(settings: dict[str, Any], steps: int) -> None:
    """Tell the scheduler how long the run is, under the names that it takes: of PyTorch's and ours, these.

    What is set is kept: a resumed run's scheduler is as long as when the run began.
    """
    scheduler = settings["schedule"]["scheduler"]
    if not isinstance(scheduler, dict) or "_target_" not in scheduler:
        return
    taken = signature(resolve_target("schedule.scheduler", scheduler["_target_"])) or {}
    epochs = check_int("trainer.max_epochs", settings["trainer"]["max_epochs"], 1)
    for name, length in {"epochs": epochs, "steps_per_epoch": steps, "total_steps": epochs * steps}.items():
        if name in taken and scheduler.get(name) is None:
            scheduler[name] = length


def check_size(spec: dict[str, Any], vocab_size: int, trust: Iterable[str] | None = ()) -> None:
    """Raise UsageError for a network that this machine could not train, before any memory is taken."""
    with torch.device("meta"), at_most(MOST_TENSORS, "are allowed"), torch.random.fork_rng(devices=[]):
        count = sum(p.numel() for p in build_network(spec, vocab_size, trust).parameters())
    needed, there = 16 * count, memory()  # weights, gradients and Adam's two averages, four bytes each
    if needed > there:
        raise UsageError(
            f"model: {count:,} parameters need {needed / 1e9:,.1f} GB to train, and there are {there / 1e9:,.1f} GB: "
            f"lower model.hidden_size, model.embedding_size or model.layers"
        )


def memory() -> float:
    """How many bytes this process may use: the machine's, or less where a container or the user limits them."""
    limits: list[float] = [math.inf]
    with contextlib.suppress(ImportError, AttributeError):  # not on Windows
        import resource

        limits.append(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))
        limits.append(resource.getrlimit(resource.RLIMIT_AS)[0])
    with contextlib.suppress(OSError, ValueError):  # no such file, or no limit in it ("max")
        limits.append(int(Path("/sys/fs/cgroup/memory.max").read_text()))
    return min(limit for limit in limits if limit > 0)


class _NoProfiler(PassThroughProfiler):
    """Lightning asks its profiler some sixty times a step; one shared context answers fastest."""

    _nothing = contextlib.nullcontext()

    # Lightning's type is of what `@contextmanager` makes; all that it does is enter and leave it.
    def profile(self, action_name: str) -> contextlib.AbstractContextManager[None]:  # type: ignore[override]
        return self._nothing


def build_trainer(
    settings: dict[str, Any], folder: Path, callbacks: list[pl.Callback], store: Store, *, validate: bool
) -> pl.Trainer:
    """Lightning's Trainer, quiet: what a person sees comes from `Terminal`; its checkpoints go to `store`."""
    logging.getLogger("pytorch_lightning").setLevel(logging.ERROR)
    if settings["accelerator"] == "auto":
        # Not Apple's MPS: it has no float64 for exact sums, and small recurrent networks are slower there.
        settings = {**settings, "accelerator": "cuda" if torch.cuda.is_available() else "cpu"}
    if not validate:
        settings = {**settings, "limit_val_batches": 0}
    devices = settings["devices"]
    if devices != 1 and not (isinstance(devices, list) and len(devices) == 1):
        raise UsageError(f"trainer.devices={devices}: a run trains on one device; give 1, or one number such as [0]")
    for name, only in {"num_nodes": 1, "strategy": "auto"}.items():
        if settings.get(name, only) != only:
            raise UsageError(f"trainer.{name}={settings[name]}: a run trains on one device; leave it out")
    check_int("trainer.max_epochs", settings["max_epochs"], 1)
    if settings["gradient_clip_val"] is not None:
        check_number("trainer.gradient_clip_val", settings["gradient_clip_val"])
    elif settings["gradient_clip_algorithm"] == "value":
        raise UsageError("trainer.gradient_clip_algorithm=value clips nothing without trainer.gradient_clip_val")
    with as_usage_error("trainer"):
        return pl.Trainer(
            **{"profiler": _NoProfiler(), **settings},
            default_root_dir=folder,
            logger=False,
            plugins=[StoreIO(store)],
            callbacks=callbacks,
            enable_progress_bar=False,
            enable_model_summary=False,
            num_sanity_val_steps=0,
        )
