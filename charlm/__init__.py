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
    from charlm.run.experiment import Result

__version__ = "0.1.0"  # pyproject.toml reads it from here

__all__ = ["UsageError", "load", "train"]


def load(path: str | Path | None = None, trust: Iterable[str] = ()) -> LanguageModel:
    """Open a checkpoint file or run folder (default: the newest run below the current folder).

    `trust` names packages of your own that the file may take its network from.
    """
    from charlm.inference import language_model  # PyTorch takes over a second to import: only where it is needed

    return language_model.load(path, trust)


def train(*overrides: str, folder: str | Path | None = None) -> Result:
    """Train as ``python train.py`` does with the same overrides, such as ``"model=gru"``, from Python or a notebook.

    `folder` is the run folder (None: a new one in ``runs/``). Returns the best loss, the history, the folder and the
    `LanguageModel`. Raises UsageError where the program would print an error.
    """
    from charlm.run.compose import compose_job
    from charlm.run.experiment import run

    return run(*compose_job(overrides, folder))
