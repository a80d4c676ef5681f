"""charlm: character-level language models with recurrent networks.

import charlm
model = charlm.load("runs/…/checkpoints/best.ckpt")
print(model.generate("for those", 300))
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from charlm.checkpoint.paths import StrPath, removed_if_empty
from charlm.errors import UsageError

if TYPE_CHECKING:
    from charlm.inference.language_model import LanguageModel
    from charlm.run.evaluate import Evaluated
    from charlm.run.lr_find import RangeResult
    from charlm.run.profile import ProfileResult
    from charlm.run.result import Result
    from charlm.sweeps.search_results import SearchResult

__version__ = "0.1.0"  # pyproject.toml reads it from here

__all__ = ["UsageError", "average", "evaluate", "load", "lr_find", "profile", "search", "train"]


def load(path: StrPath | Sequence[StrPath] | None = None, trust: Iterable[str] = ()) -> LanguageModel:
    """Open a checkpoint file, a run folder or the result of `train` (default: the newest run below the current folder).

    A list of them is opened as one model, their ensemble: its probabilities are the mean of theirs. `trust` names
    packages of your own that the file may take its network from.
    """
    # PyTorch takes over a second to import: only where it is needed.
    from charlm.inference import combining, language_model

    if path is None or isinstance(path, str | os.PathLike):
        return language_model.load(path, [*([trust] if isinstance(trust, str) else trust), *getattr(path, "trust", ())])
    if not isinstance(path, Sequence):
        raise UsageError(
            f"load({path!r}): give a run folder, a .ckpt file, a Result of charlm.train, or a list of them"
        )
    return combining.load_ensemble(path, trust)


def average(paths: Sequence[StrPath], trust: Iterable[str] = ()) -> LanguageModel:
    """The model whose weights are the mean of those in `paths`, checkpoints of one run such as SGDR's cycle ends."""
    from charlm.inference import combining

    return combining.average(paths, trust)


def evaluate(
    path: StrPath | Sequence[StrPath] | None = None, *, trust: Iterable[str] = (), **options: Any
) -> Evaluated:
    """Evaluate a checkpoint, as ``python evaluate.py`` does; the arguments are those of `load`, and ``split="test"`` …

    `options` are the fields of `charlm.inference.evaluation_options.EvaluationOptions`. The result has the losses of
    every character in ``.evaluation.losses``, their means in ``.evaluation``, and the model with its methods
    (``dynamic="sgd"``, ``cache=True``, ``temperature="fit"``) in ``.model``, which writes and scores as any other
    (dynamic evaluation learns from the text that it writes, too).
    """
    from charlm.inference.evaluation_options import EvaluationOptions
    from charlm.run.evaluate import evaluate

    chosen = EvaluationOptions(**options)
    model = load(path, trust)
    name = "the model" if path is None else str(path)
    return evaluate(model, name, chosen)


def train(*overrides: str, folder: str | Path | None = None) -> Result:
    """Train as ``python train.py`` does with the same overrides, such as ``"model=gru"``, from Python or a notebook.

    `folder` is the run folder (None: a new one in ``runs/``). Returns the best loss, the history, the folder and the
    `LanguageModel`. Raises UsageError where the program would print an error, and KeyboardInterrupt once an
    interrupted run has saved its checkpoint.
    """
    from charlm.run.compose import compose_job
    from charlm.run.experiment import run
    from charlm.training.interrupt import Interrupted

    settings, job = compose_job(overrides, folder)
    if settings.task != "train":
        raise UsageError(f"charlm.train trains: for task={settings.task}, call charlm.{settings.task}")
    try:
        with removed_if_empty(job.folder, new=folder is None and settings.resume is None):
            return run(settings, job)
    except Interrupted as interrupted:  # a notebook shows a KeyboardInterrupt in one line
        raise KeyboardInterrupt from interrupted


def lr_find(*overrides: str, folder: str | Path | None = None) -> RangeResult:
    """Find a learning rate as ``python train.py task=lr_find`` does; the arguments are those of `train`."""
    from charlm.run.compose import compose_job
    from charlm.run.lr_find import lr_find

    settings, job = compose_job([*overrides, "task=lr_find"], folder)
    with removed_if_empty(job.folder, new=folder is None):
        return lr_find(settings, job)


def profile(*overrides: str, folder: str | Path | None = None) -> ProfileResult:
    """Profile some training steps as ``python train.py task=profile`` does; the arguments are those of `train`."""
    from charlm.run.compose import compose_job
    from charlm.run.profile import profile

    settings, job = compose_job([*overrides, "task=profile"], folder)
    with removed_if_empty(job.folder, new=folder is None):
        return profile(settings, job)


def search(*overrides: str, folder: str | Path | None = None) -> SearchResult:
    """Search for the best settings as ``python train.py task=search`` does; the arguments are those of `train`.

    `folder` is that of the search, or of one that goes on with the same overrides; ``"resume=FOLDER"`` goes on, too.
    """
    from charlm.run.compose import compose_job
    from charlm.sweeps.command import resumed_search
    from charlm.sweeps.search import search
    from charlm.training.interrupt import Interrupted

    if resumed := resumed_search(overrides):
        overrides, folder = (tuple(resumed[0]), resumed[1])
    elif "task=search" not in overrides:
        overrides = (*overrides, "task=search")
    settings, job = compose_job(overrides, folder)
    try:
        with removed_if_empty(job.folder, new=folder is None):
            return search(settings, job)
    except Interrupted as interrupted:
        raise KeyboardInterrupt from interrupted
