"""Open a checkpoint: from a file to a network with its vocabulary."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from charlm.checkpoint.building import MOST_TENSORS, at_most, build_network, package_of
from charlm.checkpoint.format import FIELDS, FORMAT, KEY, PREFIX, PROGRESS, TRAINING, Checkpoint, read_progress
from charlm.checkpoint.safe_loading import check_weights, is_plain, read_safely
from charlm.errors import UsageError, as_usage_error
from charlm.models.network import Network
from charlm.text.vocab import Vocab, check_normalisation

PRECISIONS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)  # to which a whole network can be converted


def load_checkpoint(path: str | Path, trust: Iterable[str] = ()) -> Checkpoint:
    """Open a checkpoint on the CPU, whatever device wrote it.

    `trust` names packages, besides ``charlm.models``, that the network may come from. Raises UsageError if the file is
    missing, damaged, not charlm's, or unsafe.
    """
    path = Path(path)
    content = read_safely(path)
    entry = content.get(KEY)
    if entry is None and TRAINING in content:
        raise UsageError(
            f"{path} can be resumed, but not opened: it has no {KEY!r} entry, which says how to build its network; "
            f"train with a CharDataModule and a network whose arguments are plain values, or give CharLM its entry="
        )
    if not isinstance(entry, dict):
        raise UsageError(f"{path} is not a charlm checkpoint: it has no {KEY!r} entry")
    if entry.get("format") != FORMAT:
        other = repr(entry.get("format"))[:20]
        raise UsageError(
            f"{path} has checkpoint format {other}, but this version of charlm reads {FORMAT}: train the model again"
        )
    parts: dict[str, Any] = {name: entry.get(name) for name in FIELDS}
    parts["state_dict"] = content.get("state_dict")
    for name, part in parts.items():
        if not isinstance(part, dict) or not (name == "state_dict" or is_plain(part)):
            raise UsageError(f"{path} is damaged: its {name} is missing or not plain values")
    try:
        vocab, normalisation = Vocab.from_dict(parts["vocab"]), check_normalisation(parts["normalisation"])
        if not all(isinstance(key, str) for key in parts["state_dict"]):
            raise UsageError("its weights have names that are not text")
        weights = {key.removeprefix(PREFIX): w for key, w in parts["state_dict"].items() if key.startswith(PREFIX)}
        check_weights(weights, path.stat().st_size)
        trusted = [trust] if isinstance(trust, str) else list(trust)
        network = rebuild(parts["model"], len(vocab), weights, path.stat().st_size, trusted)
    except UsageError as error:
        raise UsageError(f"{path} cannot be used: {error}") from None
    others = {name: parts[name] for name in FIELDS[3:]}
    progress = read_progress(content.get(PROGRESS))
    return Checkpoint(network.eval(), parts["model"], vocab, normalisation, **others, progress=progress)


def rebuild(
    spec: Mapping[str, Any], vocab_size: int, weights: Mapping[str, Tensor], size: int, trust: list[str]
) -> Network:
    """The network of `spec` with `weights` from a file of `size` bytes. Raises UsageError if they do not fit."""
    # First compare names, shapes and types without allocating memory: a file must not ask for more than its size.
    with torch.random.fork_rng(devices=[]), at_most(MOST_TENSORS, "are allowed"):
        try:
            with torch.device("meta"):
                plan = build_network(spec, vocab_size, trust)
        except UsageError as error:
            if package_of(spec.get("_target_")) == "charlm" or "meta" not in str(error):
                raise
            plan = build_network(spec, vocab_size, trust)  # a trusted class whose constructor reads a tensor
    precision = check_fit(plan, weights, size)
    # Then build the network with its own constructor and copy the weights into it, so that everything else (tied or
    # computed weights, buffers that are not saved) is as it was in training.
    with torch.random.fork_rng(devices=[]), torch.device("cpu"):
        network = build_network(spec, vocab_size, trust)
    if precision is not None:
        network.to(precision)
    with as_usage_error("its model and its weights do not fit together"):
        network.load_state_dict(weights)
    return network


def check_fit(plan: Network, weights: Mapping[str, Tensor], size: int) -> torch.dtype | None:
    """Raise UsageError unless `weights` fit `plan`, a network on the meta device.

    Returns the dtype to convert the whole network to, as for ``trainer.precision=bf16-true``; None: as built.
    """
    built = plan.state_dict()
    for name in [*built, *weights]:
        if name not in weights or name not in built:
            where = "its file" if name not in weights else "its model"
            raise UsageError(f"its model and its weights do not fit together: {where} has no {name[:80]!r}")
        ours, theirs = built[name], weights[name]
        if not isinstance(ours, Tensor) or ours.shape != theirs.shape:
            raise UsageError(
                f"its model and its weights do not fit together: {name!r} is {list(theirs.shape)} in the file, "
                f"{list(getattr(ours, 'shape', []))} in the model"
            )
        if ours.dtype != theirs.dtype and not (ours.is_floating_point() and theirs.is_floating_point()):
            raise UsageError(f"its weight {name!r} is of type {theirs.dtype}, not {ours.dtype}")
    # Tied weights count once. Weights that share memory only in the file do not.
    alone = [name for name, _ in [*plan.named_parameters(), *plan.named_buffers()] if name in weights]
    total = sum(weights[name].nbytes for name in alone)
    if total > 2 * size:  # twice: some share memory without being tied
        raise UsageError(f"its weights claim {total:,} bytes, more than the file's {size:,}")
    floats = [name for name in weights if weights[name].is_floating_point()]
    if all(weights[name].dtype == built[name].dtype for name in floats):
        return None
    found = {weights[name].dtype for name in floats}
    if len(found) > 1 or not found <= set(PRECISIONS):
        wrong = next(name for name in floats if weights[name].dtype != built[name].dtype)
        raise UsageError(
            f"its weights have different precisions: {wrong!r} is of type {weights[wrong].dtype}, not "
            f"{built[wrong].dtype}"
        )
    return found.pop()
