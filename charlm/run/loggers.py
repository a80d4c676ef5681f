"""Loggers, one function for each ``conf/logger/*.yaml``.

None of them can stop training. W&B runs in its own thread, every wait for it has a time limit, and a failure costs one
line in the terminal; the files in the run folder do not depend on it.
"""

from __future__ import annotations

import itertools
import os
import shlex
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field
from pytorch_lightning.loggers import CSVLogger, Logger, WandbLogger

from charlm.errors import UsageError
from charlm.options import Text, checked
from charlm.run.wandb_thread import FINISH_SECONDS, INIT_SECONDS, WandbThread, reason, say


@checked
def wandb_logger(
    folder: Path,
    config: dict[str, Any],
    sweep: str | None,
    project: Annotated[Text, Field(description="W&B project.")],
    mode: Annotated[
        Literal["auto", "online", "offline"],
        Field(description="auto is online for whoever is logged in (or as WANDB_MODE says), else offline."),
    ],
    group: Annotated[Text | None, Field(description="W&B group; null: the jobs of one multirun share a group.")],
    tags: Annotated[list[Text], Field(description="W&B tags.")],
) -> Logger | None:
    """A W&B run in `folder`, silent in the terminal; a resumed run continues its W&B run.

    Needs no account and never prompts. Raises UsageError for values that W&B does not accept.
    """
    os.environ.setdefault("WANDB_SILENT", "true")
    os.environ.setdefault("WANDB_CONSOLE", "off")
    # W&B sends reports of its own errors to its server; a server that hangs would keep the program from ending.
    os.environ.setdefault("WANDB_ERROR_REPORTING", "false")
    try:
        import wandb
        from wandb import env
        from wandb.sdk import wandb_setup
        from wandb.sdk.lib import runid
    except Exception as error:  # a broken installation raises anything
        say(f"{reason(error)}; nothing is logged there")
        return None
    options: dict[str, Any] = {"project": project, "run_group": group or sweep, "run_tags": tags}
    options |= {"run_name": folder.name, "root_dir": str(folder), "init_timeout": INIT_SECONDS}
    try:
        settings = wandb.Settings(finish_timeout=FINISH_SECONDS, finish_timeout_raises=True, **options)
    except (wandb.errors.UsageError, ValueError) as error:
        raise UsageError(f"logger: {reason(error)}") from None
    for name, place in {env.CACHE_DIR: env.get_cache_dir(), env.DATA_DIR: Path(env.get_data_dir())}.items():
        with suppress(OSError):
            place.mkdir(parents=True, exist_ok=True)
        if not os.access(place, os.W_OK):  # without the first, W&B's process logs to the terminal
            os.environ[name] = str(folder.absolute() / "wandb/cache")
    earlier = _earlier_run(folder)
    # The same id for both attempts: the server may have created the run although its answer was lost.
    identity = earlier or os.environ.get("WANDB_RUN_ID") or runid.generate_id()

    def begin(offline: bool) -> Any:
        """Start the W&B run, offline or as `mode` says."""
        how: Any = "offline" if offline else mode
        if how != "auto":
            wandb_setup.singleton().settings.mode = how  # takes precedence over WANDB_MODE
        logged_in = how != "offline" and wandb.login(prompt=False, verify=False)
        if how == "auto":
            how = os.environ.get("WANDB_MODE") or ("online" if logged_in else "offline")
        if how not in ("offline", "dryrun", "disabled") and not logged_in:  # W&B would prompt and wait
            raise RuntimeError("you are not logged in (see wandb login)")
        resume: Any = "allow" if earlier else None
        return wandb.init(config=config, settings=settings, mode=how, id=identity, resume=resume)

    return Wandb(WandbThread(begin))


def csv_logger(folder: Path, config: dict[str, Any], sweep: str | None) -> Logger:
    """Every logged step in ``csv/metrics.csv``; a resumed run logs to ``csv-2``, ``csv-3`` …"""
    names = itertools.chain(["csv"], (f"csv-{number}" for number in itertools.count(2)))
    # A new folder each time, because Lightning deletes the files of an earlier logger.
    return _Csv(save_dir=folder, name=next(n for n in names if not any(folder.glob(f"{n}/*"))), version="")


def no_logger(folder: Path, config: dict[str, Any], sweep: str | None) -> Logger | None:
    """No logger: only the run folder's own files."""
    return None


def tensorboard_logger(folder: Path, config: dict[str, Any], sweep: str | None) -> Logger:
    """Event files in ``tensorboard/`` in the run folder. Raises UsageError if TensorBoard is not installed."""
    from pytorch_lightning.loggers import TensorBoardLogger

    with installed("tensorboard"):
        return TensorBoardLogger(save_dir=folder, name="tensorboard", version="", default_hp_metric=False)


@checked
def mlflow_logger(
    folder: Path,
    config: dict[str, Any],
    sweep: str | None,
    experiment_name: Annotated[Text, Field(description="MLflow experiment.")],
    tracking_uri: Annotated[
        str | None, Field(description="Address of an MLflow server; null: a database mlflow.db in the run folder.")
    ],
) -> Logger:
    """An MLflow run in ``mlflow.db`` in the run folder, or on a server. Raises UsageError if it is not installed."""
    from pytorch_lightning.loggers import MLFlowLogger

    uri = tracking_uri or f"sqlite:///{folder.absolute() / 'mlflow.db'}"
    with installed("mlflow"):
        return MLFlowLogger(experiment_name, run_name=folder.name, tracking_uri=uri, tags={"sweep": sweep or ""})


@contextmanager
def installed(extra: str) -> Iterator[None]:
    """Explain how to install what an optional logger needs."""
    try:
        yield
    except ModuleNotFoundError:
        raise UsageError(f'logger={extra} needs one more package: pip install -e ".[{extra}]"') from None


class _Csv(CSVLogger):
    """Lightning's CSV logger, tolerant of a full disk: what could not be written is written next time."""

    _failed = False

    def save(self) -> None:
        try:
            super().save()
        except OSError as error:
            if not self._failed:
                what = f"{self.root_dir} cannot be written: {error.strerror or error}"
                print(f"{what}; training continues", file=sys.stderr)
            self._failed = True


class Wandb(WandbLogger):
    """Lightning's W&B logger on a run in another thread."""

    def __init__(self, thread: WandbThread) -> None:
        run: Any = thread  # it has all that Lightning uses of a W&B run
        super().__init__(experiment=run)
        self._run_thread = thread

    def upload(self, folder: Path) -> tuple[str, str] | None:
        """Where the run in `folder` was logged, and the address to look at it or the command that uploads it."""
        run = self._run_thread.run
        if run is None or getattr(run, "disabled", False):
            return None
        if not run.offline:
            return ("look at it on W&B", run.url) if run.url else None
        if not any(folder.glob("wandb/offline-run-*")):
            return None
        return (
            "logged for W&B in the run folder; upload with",
            f"wandb sync {shlex.quote(str(folder))}/wandb/offline-run-*",
        )

    def log_table(self, key: str, *args: Any, **options: Any) -> None:
        """Log a table, or report what went wrong."""
        try:
            super().log_table(key, *args, **options)
        except Exception as error:
            self._run_thread.fail(f"{reason(error)}; missing there: {key}")


def _earlier_run(folder: Path) -> str | None:
    """The id of the newest W&B run in `folder`."""
    found = folder.glob("wandb/*run-*/run-*.wandb")
    newest = max(found, key=lambda path: path.parent.name.removeprefix("offline-"), default=None)
    return newest.stem.removeprefix("run-") if newest else None
