"""How Lightning writes and reads checkpoints: through a `Store`, and without running pickled code."""

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

# Who is to blame for a part of Lightning's checkpoints.
OWNERS = {
    "state_dict": "model: it",
    "optimizer_states": "optimizer: it",
    "lr_schedulers": "schedule: it",
    "callbacks": "callbacks: one",
}


class StoreIO(CheckpointIO):
    """Lightning's checkpoints through a `Store`; read without running pickled code."""

    def __init__(self, store: Store) -> None:
        self.store = store
        self._proven: Any = None  # the names, shapes and types of weights that could be opened again

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        """Write `checkpoint` to `path`. Raises UsageError if it cannot be opened again.

        That is tried with the first, from before any step, and again when the weights are no longer alike.
        """
        buffer, path = io.BytesIO(), Path(path)
        torch.save(checkpoint, buffer)
        with suppress(OSError):  # a full disk: the store keeps it and tries again
            path.parent.mkdir(parents=True, exist_ok=True)
        self.store.write(path, buffer.getvalue())
        weights = checkpoint.get("state_dict") or {}
        alike = {name: (getattr(w, "shape", None), getattr(w, "dtype", type(w))) for name, w in weights.items()}
        if alike == self._proven or not path.exists():
            return
        try:
            prove(checkpoint, path)
        except UsageError:
            if checkpoint.get("global_step") == 0:  # nothing was trained: leave the folder free for the next attempt
                with suppress(OSError):
                    path.unlink()
                    path.parent.rmdir()
            raise
        self._proven = alike

    def load_checkpoint(self, path: Any, map_location: Any = None, weights_only: bool | None = None) -> dict[str, Any]:
        """Read the checkpoint at `path` on the CPU; plain values and tensors only, whatever is asked for."""
        return read_safely(Path(path))

    def remove_checkpoint(self, path: Any) -> None:
        """Remove the checkpoint at `path`."""
        Path(path).unlink(missing_ok=True)


def prove(checkpoint: dict[str, Any], path: Path) -> None:
    """Raise UsageError unless `path`, where `checkpoint` was written, opens as it will for everyone later."""
    try:
        read_safely(path)
    except UsageError:
        owner = OWNERS.get(unreadable(checkpoint), "callbacks: one")
        raise UsageError(f"{owner} keeps in checkpoints what is not plain values and tensors") from None
    if KEY not in checkpoint:
        return
    before = random_state.collect()  # a network that is built draws its first weights
    try:
        load_checkpoint(path, trust=[package_of(checkpoint[KEY]["model"].get("_target_"))])
    except UsageError as error:
        reason = str(error).removeprefix(f"{path} cannot be used: ")
        raise UsageError(f"model: it could be trained, but not be opened again: {reason}") from None
    finally:
        random_state.restore(before)


def unreadable(checkpoint: dict[str, Any]) -> str:
    """The first part of `checkpoint` that could not be read again; "" when each could."""
    with tempfile.TemporaryDirectory() as folder:
        for name, part in checkpoint.items():
            path = Path(folder) / "part.ckpt"
            torch.save({name: part}, path)
            try:
                read_safely(path)
            except UsageError:
                return name
    return ""
