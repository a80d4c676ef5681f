"""One job of a sweep, in the process where Hydra's launcher runs it."""

from __future__ import annotations

import functools
import hashlib
import json
import math
import os
import platform
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from types import FrameType
from typing import Any

from filelock import FileLock, Timeout
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf

from charlm.checkpoint.paths import model_name
from charlm.errors import first_line
from charlm.run.compose import Job, job_from_hydra, with_own_threads
from charlm.run.settings import Settings
from charlm.run.tasks import perform
from charlm.sweeps import watch
from charlm.sweeps.folder import PROCESS, JobRecord, SweepFolder, this_process
from charlm.sweeps.preemption import Preemption
from charlm.sweeps.recording import recorded
from charlm.training.interrupt import Interrupted

PATIENCE = 60  # seconds to wait for a process that still trains this job, after the sweep's own was killed
busy = threading.Lock()  # held while a job runs in this process
LOSSES = {"train": "best_val_nats", "lr_find": "smoothed_nats", "profile": "seconds_per_character"}


def perform_job(config: DictConfig) -> float:
    """Run a job, unless it is finished; resume one that was interrupted. Its output goes to ``train.log``.

    Returns its loss for Hydra's sweepers: infinity for a job that failed, whose error is kept in its record, and NaN
    for one that was stopped.
    """
    hydra = HydraConfig.get()
    if watch.session is None and not hydra.job.chdir:  # Ray begins jobs elsewhere
        os.chdir(hydra.runtime.cwd)
    sweep = in_this_process(Path(hydra.runtime.cwd, hydra.sweep.dir))
    preemption = Preemption()
    overrides: Any = OmegaConf.to_container(hydra.overrides.task, resolve=False)
    number, folder = int(hydra.job.num), Path(os.path.relpath(hydra.runtime.output_dir))
    record = JobRecord(
        number,
        overrides,
        os.path.relpath(folder, sweep.path),
        "running",
        model_name(hydra.runtime.choices.get("model"), overrides),
        settings=fingerprint(config),
        loss=LOSSES[config.task],
    )

    def stopping() -> bool:
        return bool(preemption.number) or sweep.stopping()

    value = math.inf
    try:
        with busy, alone(sweep.jobs / f"{number}.lock", stopping):
            earlier = sweep.read(number)
            same = earlier if earlier and earlier.is_of(record.settings, record.folder) else None
            if same and same.status == "finished" and ((folder / "summary.json").is_file() or config.task != "train"):
                return math.nan if same.nats is None else same.nats
            if stopping():
                with suppress(OSError):  # Hydra made it
                    folder.rmdir()
                return math.nan
            resumable = same is not None and config.task == "train" and (folder / "checkpoints/last.ckpt").is_file()
            # A run in the folder of a job that has no record is somebody else's.
            with recorded(sweep, record, afresh=earlier is not None and not resumable) as report:
                settings, job = job_from_hydra(config)
                # Signals are handled, see `in_this_process`, unless the sweep has no session.
                signals = watch.session is None and sweep.process is None
                job = replace(job, report=report, stopping=stopping, signals=signals)
                settings, job = shared(settings, job, sweep)
                if resumable:
                    settings, job = settings.model_copy(update={"resume": str(folder)}), replace(job, number=None)
                value = perform(settings, job)
                record.nats = value if math.isfinite(value) else None
    except Timeout:
        record.status, record.error = "failed", "another process still trains this job"
        with suppress(OSError):
            sweep.write(record)
    except Interrupted as interrupted:
        if not preemption.number:
            sweep.stop(interrupted.number)
        elif not sweep.stopping():
            try:
                preemption.requeue()
            except Exception as error:
                more = "set hydra.launcher.timeout_min or, on a cluster, hydra.launcher.max_num_timeout"
                record.status, record.error = "failed", f"{first_line(error).rstrip('.')}: {more}"
                with suppress(OSError):
                    sweep.write(record)
                return math.inf
        return math.nan
    return value


def in_this_process(path: Path) -> SweepFolder:
    """The sweep as this process sees it.

    In the process that runs the sweep, a signal counts at once. A worker that it has started leaves Ctrl-C, which it
    gets as well, to that process, and passes other signals on. Those of submitit and Ray are left to them.
    """
    if watch.session is not None:
        return watch.session.sweep
    command = SweepFolder(path).command()
    if command is None or command["process"] == this_process():
        return SweepFolder(path)
    sweep = SweepFolder(path, os.environ.get(PROCESS) or command["process"])
    if sweep.process != f"{platform.node()}:{os.getppid()}":
        return sweep

    def pass_on(number: int, frame: FrameType | None) -> None:
        sweep.stop(number)

    end_with(os.getppid())
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, pass_on)
    return sweep


@functools.cache
def end_with(parent: int) -> None:
    """End this process once `parent` has ended and no job runs here. joblib's workers would wait for it for ever."""

    def watch_parent() -> None:
        while os.getppid() == parent:
            time.sleep(1)
        with busy:
            os._exit(1)

    threading.Thread(target=watch_parent, daemon=True).start()


@contextmanager
def alone(path: Path, stopping: Callable[[], bool]) -> Iterator[None]:
    """Hold the lock at `path`, for which another process may have to end that still trains this job.

    Raises Timeout if it does not, and Interrupted if this job shall stop before.
    """
    lock, until = FileLock(path), time.monotonic() + PATIENCE
    while not lock.is_locked:
        try:
            lock.acquire(timeout=1)
        except Timeout:
            if stopping():
                raise Interrupted(signal.SIGTERM) from None
            if time.monotonic() >= until:
                raise
    try:
        yield
    finally:
        lock.release()


def shared(settings: Settings, job: Job, sweep: SweepFolder) -> tuple[Settings, Job]:
    """The settings and the job with their share of the machine, which is that of the sweep when it began."""
    command = sweep.command() or {"parallel": 1, "threads": None}
    return with_own_threads(settings, job, command["threads"]), replace(job, parallel=command["parallel"])


def fingerprint(config: DictConfig) -> str:
    """What is equal for equal settings only."""
    plain = OmegaConf.to_container(config, resolve=False)
    return hashlib.sha256(json.dumps(plain, sort_keys=True, default=str).encode()).hexdigest()[:16]
