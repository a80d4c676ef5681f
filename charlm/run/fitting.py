"""Train and test with Lightning, and turn what can go wrong into one sentence."""

from __future__ import annotations

import contextlib
import os
import sys
import traceback
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytorch_lightning as pl
import torch
from pytorch_lightning.utilities.exceptions import MisconfigurationException

from charlm.checkpoint.building import package_of
from charlm.checkpoint.loading import load_checkpoint
from charlm.data.module import CharDataModule
from charlm.errors import UsageError, first_line
from charlm.run.settings import Settings
from charlm.training.callbacks.checkpoints import Checkpoints
from charlm.training.callbacks.divergence_guard import Diverged
from charlm.training.interrupt import Paused
from charlm.training.module import CharLM
from charlm.training.ranks import RankLost, is_lost, leave


def fit(
    trainer: pl.Trainer, model: CharLM, data: CharDataModule, path: Path | None, callbacks: Mapping[str, pl.Callback]
) -> None:
    """Train, starting from the checkpoint at `path` if there is one.

    Raises Interrupted after a signal, KeyboardInterrupt after a second one, and UsageError for a checkpoint that does
    not fit.
    """
    try:
        with interruptible(trainer):
            trainer.fit(model, datamodule=data, ckpt_path=path)
        leave()
    except UsageError:
        raise
    except Exception as error:
        if is_lost(error):
            raise RankLost("another process of this run has ended") from None
        if isinstance(error, torch.distributed.DistError):
            where = f"{os.environ.get('MASTER_ADDR')}:{os.environ.get('MASTER_PORT')}"
            raise UsageError(f"the processes cannot find each other at {where}: {first_line(error)}") from None
        if "find_unused_parameters" in str(error):
            raise UsageError(
                "model: some of its parameters get no gradient, for which several processes would wait in vain: set "
                "trainer.strategy=ddp_find_unused_parameters_true, or freeze them"
            ) from None
        if isinstance(error, MemoryError | torch.OutOfMemoryError) or "can't allocate memory" in str(error):
            raise UsageError(
                f"there is not enough memory: lower data.batch_size={data.batch_size}, data.bptt={data.bptt} or "
                f"model.hidden_size"
            ) from None
        if name := raised_by(error, callbacks):
            raise UsageError(f"callbacks.{name}: {first_line(error)}") from error
        if isinstance(error, MisconfigurationException):
            raise UsageError(f"trainer: {first_line(error)}") from None
        if path is None or model.first_step not in (None, trainer.global_step):
            raise
        what = " ".join(str(error).split())[:200]
        more = "; another .ckpt in its folder may still work"
        raise UsageError(f"{path} cannot be resumed, it is damaged: {type(error).__name__}: {what}{more}") from None


def evaluate(trainer: pl.Trainer, model: CharLM, data: CharDataModule, best: Path, settings: Settings) -> float:
    """The test loss of the best checkpoint in nats per character."""
    network = load_checkpoint(best, trust=[package_of(settings.model["_target_"])]).network
    model.network.load_state_dict(network.state_dict())
    with interruptible(trainer):
        return float(trainer.test(model, datamodule=data, verbose=False)[0]["test/nats"])


@contextlib.contextmanager
def interruptible(trainer: pl.Trainer) -> Iterator[None]:
    """Raise KeyboardInterrupt where Lightning has turned it into SystemExit."""
    try:
        yield
    except SystemExit:
        if trainer.interrupted:
            raise KeyboardInterrupt from None
        raise


@contextlib.contextmanager
def resumable(command: str, checkpoints: Checkpoints) -> Iterator[None]:
    """Print the resume command when a run is interrupted."""
    try:
        yield
    except Diverged as error:
        kept = [os.path.relpath(path) for path in (checkpoints.best, checkpoints.last) if path.exists()]
        raise Diverged(f"{error}; checkpoints from before: {', '.join(kept)}") from None
    except RankLost as error:
        more = f"resume it with {command}" if checkpoints.last.exists() else "start it again"
        raise UsageError(f"{error}: {more}") from None
    except (UsageError, Paused):
        raise
    except BaseException:
        if checkpoints.last.exists():
            print(f"resume with\n  {command}", file=sys.stderr)
        raise


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Suppress warnings that do not help the user."""
    with warnings.catch_warnings():
        # `History` logs every `log_every_n_steps` steps, however short an epoch is.
        warnings.filterwarnings("ignore", ".*is smaller than the logging interval.*")
        # It is resumable: the data module saves its position.
        warnings.filterwarnings("ignore", ".*your dataloader is not resumable.*")
        # The values that are logged are those of all ranks already.
        warnings.filterwarnings("ignore", ".*sync_dist=True.*")
        # Lightning 2.6 itself uses a name that torch 2.13 deprecates.
        warnings.filterwarnings("ignore", ".*LeafSpec.* is deprecated.*")
        yield


def raised_by(error: BaseException, callbacks: Mapping[str, pl.Callback]) -> str | None:
    """The name of the user's callback in which `error` was raised, or None."""
    for frame, _ in traceback.walk_tb(error.__traceback__):
        for name, callback in callbacks.items():
            if frame.f_locals.get("self") is callback:
                return name
    return None
