"""How Lightning writes and reads checkpoints: through a `Store`, and without running pickled code."""

from __future__ import annotations

import io
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from pytorch_lightning.plugins.io import CheckpointIO

from charlm.checkpoint.safe_loading import read_safely
from charlm.checkpoint.storage import Store
from charlm.errors import UsageError


class StoreIO(CheckpointIO):
    """Lightning's checkpoints through a `Store`; read without running pickled code."""

    def __init__(self, store: Store) -> None:
        self.store = store
        self._proven = False  # that what is written can be read

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        """Write `checkpoint` to `path`."""
        buffer = io.BytesIO()
        torch.save(checkpoint, buffer)
        with suppress(OSError):  # a full disk: the store keeps it and tries again
            Path(path).parent.mkdir(parents=True, exist_ok=True)
        self.store.write(Path(path), buffer.getvalue())
        if not self._proven and Path(path).exists():
            try:
                read_safely(Path(path))
            except UsageError:
                raise UsageError("callbacks: one keeps in checkpoints what is not plain values and tensors") from None
            self._proven = True

    def load_checkpoint(self, path: Any, map_location: Any = None, weights_only: bool | None = None) -> dict[str, Any]:
        """Read the checkpoint at `path` on the CPU; plain values and tensors only, whatever is asked for."""
        return read_safely(Path(path))

    def remove_checkpoint(self, path: Any) -> None:
        """Remove the checkpoint at `path`."""
        Path(path).unlink(missing_ok=True)
