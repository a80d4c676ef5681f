"""Lightning's checkpoint files: written through a `Store`, read without running pickled code."""

from __future__ import annotations

import io
import tempfile
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from pytorch_lightning.plugins.io import CheckpointIO

from charlm.checkpoint.building import package_of
from charlm.checkpoint.format import KEY
from charlm.checkpoint.loading import load_checkpoint
from charlm.checkpoint.safe_loading import read_safely
from charlm.checkpoint.storage import Store
from charlm.errors import UsageError
from charlm.training import random_state

# The section of options that each part of Lightning's checkpoints comes from.
SECTIONS = {"state_dict": "model", "optimizer_states": "optimizer", "lr_schedulers": "schedule"}


class StoreIO(CheckpointIO):
    """Writes Lightning's checkpoints through a `Store`, and reads them without running pickled code."""

    def __init__(self, store: Store) -> None:
        self.store = store
        self._proven: Any = None  # names, shapes and types of the weights in a file that was read back successfully

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        """Write `checkpoint` to `path`. Raises UsageError if it cannot be opened again.

        This is tested with the first checkpoint, which is written before any step, and whenever the names, shapes or
        types of the weights have changed.
        """
        buffer, path = io.BytesIO(), Path(path)
        torch.save(checkpoint, buffer)
        self.store.write(path, buffer.getvalue())
        weights = checkpoint.get("state_dict") or {}
        weight_types = {name: (getattr(w, "shape", None), getattr(w, "dtype", type(w))) for name, w in weights.items()}
        if weight_types == self._proven or not path.exists():
            return
        try:
            check_readable(checkpoint, path)
        except UsageError:
            if checkpoint.get("global_step") == 0:  # nothing was trained: free the folder for the next attempt
                with suppress(OSError):
                    path.unlink()
                    path.parent.rmdir()
            raise
        self._proven = weight_types

    def load_checkpoint(self, path: Any, map_location: Any = None, weights_only: bool | None = None) -> dict[str, Any]:
        """Read the checkpoint at `path` on the CPU, always with plain values and tensors only."""
        return read_safely(Path(path))

    def remove_checkpoint(self, path: Any) -> None:
        """Remove the checkpoint at `path`."""
        Path(path).unlink(missing_ok=True)


def check_readable(checkpoint: dict[str, Any], path: Path) -> None:
    """Raise UsageError unless the `checkpoint` written to `path` can be opened like any other later."""
    try:
        read_safely(path)
    except UsageError:
        section = SECTIONS.get(unreadable(checkpoint), "callbacks")
        raise UsageError(
            f"{section}: its state in a checkpoint must be plain values and tensors (what its state_dict returns)"
        ) from None
    if KEY not in checkpoint:
        return
    before = random_state.collect()  # building a network draws its initial weights
    try:
        load_checkpoint(path, trust=[package_of(checkpoint[KEY]["model"].get("_target_"))])
    except UsageError as error:
        reason = str(error).removeprefix(f"{path} cannot be used: ")
        raise UsageError(f"model: it can be trained, but its checkpoint cannot be opened again: {reason}") from None
    finally:
        random_state.restore(before)


def unreadable(checkpoint: dict[str, Any]) -> str:
    """The first part of `checkpoint` that cannot be read again; "" if every part can."""
    with tempfile.TemporaryDirectory() as folder:
        for name, part in checkpoint.items():
            path = Path(folder) / "part.ckpt"
            torch.save({name: part}, path)
            try:
                read_safely(path)
            except UsageError:
                return name
    return ""
