"""What a checkpoint holds, and how to open one safely.

A charlm checkpoint is a Lightning checkpoint with one more entry, ``"charlm"``: the model's
specification, the vocabulary, the text normalisation, the composed config and the corpus checksum, all
plain values. Opening one runs no pickled code (``weights_only=True``) and builds nothing outside
``charlm.models.``.
"""

from __future__ import annotations

import importlib
import warnings
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn.modules.module import register_module_parameter_registration_hook

from charlm.errors import UsageError
from charlm.models import Network
from charlm.vocab import Vocab, check_normalisation

KEY = "charlm"
TRAINING = "charlm_training"  # carried state, running means and random states, to go on from
FORMAT = 1
FAMILIES = "charlm.models."
PARTS = ("model", "vocab", "normalisation", "config", "corpus", "run")
PREFIX = "network."  # where CharLM keeps the network's weights


def pack(
    model: Mapping[str, Any],
    vocab: Vocab,
    normalisation: Mapping[str, Any],
    config: Mapping[str, Any],
    corpus: Mapping[str, Any],
    run: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """The checkpoint entry that makes a file self-contained. Everything must be plain values.

    `run` is what ``train.py`` needs to go on, besides the config.
    """
    return {
        "format": FORMAT,
        "model": dict(model),
        "vocab": vocab.to_dict(),
        "normalisation": dict(normalisation),
        "config": dict(config),
        "corpus": dict(corpus),
        "run": dict(run or {}),
    }


def build_network(spec: Mapping[str, Any], vocab_size: int) -> Network:
    """Make a network from its specification: ``_target_`` and plain keyword arguments.

    Raises UsageError when `_target_` is not a network class that ``charlm.models`` itself defines, or
    when the class refuses the arguments.
    """
    target = spec.get("_target_")
    module, _, name = str(target).rpartition(".")
    refusal = UsageError(f"model: {target!r} is not a network in {FAMILIES}*: nothing else is built")
    if (
        not module.startswith(FAMILIES)
        or name.startswith("_")
        or not all(part.isidentifier() for part in module.split("."))
    ):
        raise refusal
    try:
        family = getattr(importlib.import_module(module), name, None)
    except ImportError:
        raise refusal from None
    # A name such as charlm.models.recurrent.nn.Linear must not reach what a family merely imports.
    if not isinstance(family, type) or not issubclass(family, Network) or family.__module__ != module:
        raise refusal
    arguments = {key: value for key, value in spec.items() if key != "_target_"}
    try:
        return family(vocab_size=vocab_size, **arguments)
    except (TypeError, ValueError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]  # PyTorch adds its C++ frames below
        raise UsageError(f"model: {reason}") from None


@dataclass(frozen=True)
class Opened:
    """A checkpoint's contents. `network` is in evaluation mode, on the CPU."""

    network: Network
    vocab: Vocab
    normalisation: dict[str, Any]
    config: dict[str, Any]
    corpus: dict[str, Any]
    run: dict[str, Any]


def read(path: str | Path) -> Opened:
    """Open a checkpoint on the CPU, whatever device wrote it.

    Raises UsageError when it is missing, damaged, not charlm's, or asks for something unsafe.
    """
    path = Path(path)
    if not path.is_file():
        raise UsageError(f"there is no checkpoint at {path}: give --checkpoint FILE, or train one with train.py")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # a damaged file may warn on its way to the error below
            content = torch.load(path, map_location="cpu", weights_only=True)
        with zipfile.ZipFile(path) as archive:
            damaged = archive.testzip()  # PyTorch itself does not look at the check sums
    except Exception:  # a damaged zip or pickle can raise anything
        raise UsageError(
            f"{path} is not a checkpoint that can be opened safely: it is cut short, damaged, or something else"
        ) from None
    if damaged:
        raise UsageError(f"{path} is damaged: the check sum of its entry {damaged} is wrong")
    entry = content.get(KEY) if isinstance(content, dict) else None
    if not isinstance(entry, dict):
        raise UsageError(f"{path} is not a charlm checkpoint: it has no {KEY!r} entry")
    if entry.get("format") != FORMAT:
        raise UsageError(f"{path} has checkpoint format {entry.get('format')!r}; this charlm reads {FORMAT}")
    parts: dict[str, Any] = {name: entry.get(name) for name in PARTS}
    parts["run"] = entry.get("run", {})  # older files have none; they only cannot be resumed
    parts["state_dict"] = content.get("state_dict")
    for name, part in parts.items():
        if not isinstance(part, dict):
            raise UsageError(f"{path} is damaged: its {name} is missing")
    try:
        vocab, normalisation = Vocab.from_dict(parts["vocab"]), check_normalisation(parts["normalisation"])
        if not all(isinstance(key, str) for key in parts["state_dict"]):
            raise UsageError("its weights have names that are not text")
        weights = {key.removeprefix(PREFIX): w for key, w in parts["state_dict"].items() if key.startswith(PREFIX)}
        # Shapes only, and no more parameters than the file has weights: a file cannot ask for more memory or
        # time than its own size warrants.
        with torch.device("meta"), at_most(len(weights)):
            network = build_network(parts["model"], len(vocab))
        network.load_state_dict(weights, assign=True)
        if any(buffer.is_meta for buffer in network.buffers()):  # one that is made, not stored: a mask, say
            network = build_network(parts["model"], len(vocab))
            network.load_state_dict(weights)
    except UsageError as error:
        raise UsageError(f"{path} cannot be used: {error}") from None
    except (RuntimeError, OverflowError):
        raise UsageError(f"{path} cannot be used: its model and its weights do not fit together") from None
    return Opened(network.eval(), vocab, normalisation, *(parts[name] for name in PARTS[3:]))


@contextmanager
def at_most(count: int) -> Iterator[None]:
    """Raise UsageError as soon as modules are given more than `count` parameters."""
    left = count

    def registered(module: nn.Module, name: str, parameter: nn.Parameter | None) -> None:
        nonlocal left
        left -= 1
        if left < 0:
            raise UsageError(f"its model has more parameters than the {count} that are stored")

    handle = register_module_parameter_registration_hook(registered)
    try:
        yield
    finally:
        handle.remove()


def find(where: str | Path | None = None) -> Path:
    """The checkpoint file meant by `where`: a file, a run folder, or None for the newest run here.

    Of a run, ``best.ckpt`` goes before ``last.ckpt``. Raises UsageError when there is none.
    """
    if where is not None:
        path = Path(where)
        if not path.is_dir():
            return path
        found = [path / folder / f"{name}.ckpt" for folder in ("checkpoints", ".") for name in ("best", "last")]
        found = [file for file in found if file.is_file()]
        if not found:
            raise UsageError(f"{path} is a folder without checkpoints/best.ckpt: give --checkpoint FILE")
        return found[0]
    patterns = ("runs/*/checkpoints/*.ckpt", "sweeps/*/*/checkpoints/*.ckpt")
    newest = max((f for p in patterns for f in Path().glob(p)), key=lambda f: f.stat().st_mtime, default=None)
    if newest is None:
        raise UsageError("there is no run in runs/ or sweeps/ here: train one with train.py or give --checkpoint FILE")
    return find(newest.parent.parent)
