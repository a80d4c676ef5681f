"""charlm: character-level language models with recurrent networks.

import charlm
model = charlm.load("runs/…/checkpoints/best.ckpt")
print(model.generate("for those", 300))
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from charlm.errors import UsageError

if TYPE_CHECKING:
    from charlm.inference.language_model import LanguageModel

__all__ = ["UsageError", "load"]


def load(path: str | Path | None = None, trust: Iterable[str] = ()) -> LanguageModel:
    """Open a checkpoint file or run folder (default: the newest run below the current folder).

    `trust` names packages of your own that the file may take its network from.
    """
    from charlm.inference import language_model  # PyTorch takes over a second to import: only where it is needed

    return language_model.load(path, trust)
