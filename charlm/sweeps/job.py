"""One job of a sweep, in the process where Hydra's launcher runs it."""

from __future__ import annotations

import math
import os
import shutil
import signal
import threading
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf

from charlm.checkpoint.paths import model_name
from charlm.errors import UsageError, first_line
from charlm.run.compose import job_from_hydra
from charlm.run.tasks import perform
from charlm.sweeps import watch
from charlm.sweeps.folder import JobRecord, SweepFolder
from charlm.training.interrupt import Interrupted


def perform_job(config: DictConfig) -> float:
    """Run a job, unless it is finished; resume one that was interrupted. Its output goes to ``train.log``.

    Returns its loss for Hydra's sweepers: infinity for a job that failed, whose error is kept in its record, and NaN
    for one that was stopped.
    """
    hydra = HydraConfig.get()
    # In the process that runs the sweep, the same object, so that a signal counts at once.
    sweep = SweepFolder(Path(hydra.sweep.dir)) if watch.session is None else watch.session.sweep
    number, overrides = int(hydra.job.num), unresolved(hydra.overrides.task)
    folder = Path(os.path.relpath(hydra.runtime.output_dir))
    earlier = sweep.read(number)
    if earlier is not None and earlier.overrides == overrides and earlier.status == "finished":
        if (folder / "summary.json").is_file() or config.task != "train":
            return math.nan if earlier.nats is None else earlier.nats
    if sweep.stopping():
        return math.nan
    model = model_name(hydra.runtime.choices.get("model"), overrides)
    record = JobRecord(number, overrides, os.path.relpath(folder, sweep.path), "running", model)
    started, ours = time.monotonic(), watch.session is not None
    if not ours:
        leave_interrupts_to_the_sweep()

    def report(progress: dict[str, Any], *, durable: bool = False) -> None:
        for name, value in progress.items():
            setattr(record, name, value)
        with suppress(OSError):  # an observer
            sweep.write(record, durable=durable)

    report({}, durable=True)
    resumable = config.task == "train" and (folder / "checkpoints/last.ckpt").is_file()
    if not resumable and earlier is not None and earlier.folder == record.folder not in (".", ""):
        shutil.rmtree(folder, ignore_errors=True)  # left by this job, which was killed before its first checkpoint
    folder.mkdir(parents=True, exist_ok=True)
    try:
        with output_to(folder / "train.log"):
            settings, job = job_from_hydra(config)
            job = replace(job, report=report, stopping=sweep.stopping, signals=not ours)
            if resumable:
                settings, job = settings.model_copy(update={"resume": str(folder)}), replace(job, number=None)
            value = perform(settings, job)
    except Interrupted as interrupted:
        sweep.stop(interrupted.number)
        report({"status": "interrupted"}, durable=True)
        return math.nan
    except Exception as error:
        sentence = str(error) if isinstance(error, UsageError) else f"{first_line(error)} (see its train.log)"
        report({"status": "failed", "error": sentence}, durable=True)
        return math.inf
    nats = value if math.isfinite(value) else None
    seconds = time.monotonic() - started
    report({"status": "finished", "nats": nats, "left": 0.0, "seconds": max(seconds, record.seconds)}, durable=True)
    return value


def unresolved(overrides: Any) -> list[str]:
    """The overrides as they were typed."""
    plain: Any = OmegaConf.to_container(overrides, resolve=False)
    return list(plain)


@contextmanager
def output_to(path: Path) -> Iterator[None]:
    """Append what is printed to the file at `path`, errors included."""
    log = path.open("a", encoding="utf-8", errors="replace", buffering=1)
    with log, redirect_stdout(log), redirect_stderr(log):
        try:
            yield
        except UsageError as error:
            print(f"error: {error}")
            raise
        except Exception:
            traceback.print_exc()
            raise


def leave_interrupts_to_the_sweep() -> None:
    """Ignore Ctrl-C in a worker process, which also gets it: the sweep tells the jobs to stop."""
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGINT, signal.SIG_IGN)
