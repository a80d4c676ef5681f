"""Open a checkpoint: from a file to a network with its vocabulary."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from charlm.checkpoint.building import at_most, build_network
from charlm.checkpoint.format import FIELDS, FORMAT, KEY, PREFIX, Checkpoint
from charlm.checkpoint.safe_loading import check_weights, is_plain, read_safely
from charlm.errors import UsageError
from charlm.text.vocab import Vocab, check_normalisation


def load_checkpoint(path: str | Path) -> Checkpoint:
    """Open a checkpoint on the CPU, whatever device wrote it.

    Raises UsageError when it is missing, damaged, not charlm's, or asks for something unsafe.
    """
    path = Path(path)
    content = read_safely(path)
    entry = content.get(KEY)
    if not isinstance(entry, dict):
        raise UsageError(f"{path} is not a charlm checkpoint: it has no {KEY!r} entry")
    if entry.get("format") != FORMAT:
        raise UsageError(f"{path} has checkpoint format {entry.get('format')!r}; this charlm reads {FORMAT}")
    parts: dict[str, Any] = {name: entry.get(name) for name in FIELDS}
    parts["run"] = entry.get("run", {})  # older files have none; they only cannot be resumed
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
        # Shapes only, and no more parameters than the file has weights: a file cannot ask for more memory or
        # time than its own size warrants.
        with torch.device("meta"), at_most(len(weights), "its file holds"):
            network = build_network(parts["model"], len(vocab))
        for name, tensor in network.state_dict().items():
            if name in weights and weights[name].is_floating_point() != tensor.is_floating_point():
                raise UsageError(f"its weight {name!r} is of type {weights[name].dtype}")
        network.load_state_dict(weights, assign=True)
        if any(buffer.is_meta for buffer in network.buffers()):  # one that is made, not stored: a mask, say
            network = build_network(parts["model"], len(vocab))
            network.load_state_dict(weights)
    except UsageError as error:
        raise UsageError(f"{path} cannot be used: {error}") from None
    except (RuntimeError, OverflowError):
        raise UsageError(f"{path} cannot be used: its model and its weights do not fit together") from None
    return Checkpoint(network.eval(), vocab, normalisation, *(parts[name] for name in FIELDS[3:]))
