"""Hydra's launchers for submitit and Ray, told about one job at a time.

Given all jobs, they give up at the first one whose process is killed, and leave the others alone; and submitit starts
all at once on a machine that has room for a few.
"""

from __future__ import annotations

import math
import signal
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from multiprocessing.pool import ThreadPool
from typing import Any

from hydra.core.plugins import Plugins
from hydra.core.utils import JobReturn, JobStatus
from hydra.plugins.launcher import Launcher
from omegaconf import DictConfig

from charlm.errors import first_line
from charlm.sweeps.planning import jobs_at_once, kind
from charlm.sweeps.ray_cluster import connected

# What submitit and Ray raise for a process that is gone, and Ray for a machine.
GONE = {"UncompletedJobError", "WorkerCrashedError", "NodeDiedError", "LocalRayletDiedError"}
Killed = Callable[[int, list[str], str], None]  # is told of a job whose process is gone: number, overrides, why


class OneByOne(Launcher):
    """Gives each job to `launcher` on its own, so many `at_once` (None: all), and goes on without those that fail."""

    def __init__(self, launcher: Launcher, at_once: int | None, killed: Killed, stopping: Callable[[], bool]) -> None:
        self.launcher, self.at_once, self.killed, self.stopping = launcher, at_once, killed, stopping

    def setup(self, **given: Any) -> None:
        """Nothing: `launcher` is ready."""

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        """Run the jobs; a job whose process was killed counts as an infinite loss."""
        numbered = list(enumerate(job_overrides, initial_job_idx))
        with ThreadPool(min(self.at_once or len(numbered), len(numbered)), keep_to_ourselves) as pool:
            return pool.starmap(self.launch_one, numbered, chunksize=1)

    def launch_one(self, number: int, overrides: Sequence[str]) -> JobReturn:
        """Run one job, unless the sweep is stopping."""
        if self.stopping():
            return JobReturn(overrides=overrides, _return_value=math.nan, status=JobStatus.COMPLETED)
        try:
            (job,) = self.launcher.launch([overrides], number)
            if job.status == JobStatus.FAILED:  # before it could note that itself, as without our disk
                raise job._return_value
            return job
        except Exception as error:
            self.killed(number, list(overrides), sentence(error))
            return JobReturn(overrides=overrides, _return_value=math.inf, status=JobStatus.COMPLETED)


def sentence(error: Exception) -> str:
    """What happened to a job that did not return."""
    if type(error).__name__ in GONE:
        return "its process was killed, perhaps because the memory was full"
    return first_line(error)


def keep_to_ourselves() -> None:
    """Processes that this thread starts do not get Ctrl-C, with which submitit would kill their jobs."""
    if hasattr(signal, "pthread_sigmask"):  # not on Windows
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGHUP})


@contextmanager
def each_on_its_own(launcher: DictConfig, killed: Killed, stopping: Callable[[], bool]) -> Iterator[None]:
    """Wrap the launcher that Hydra makes in `OneByOne` if it is one of submitit's or Ray's.

    Raises UsageError if there is no Ray cluster.
    """
    at_once = {
        "LocalLauncher": jobs_at_once(launcher, 0),
        "SlurmLauncher": launcher.get("array_parallelism"),
        "RayLauncher": None,  # Ray has a queue
    }
    if (name := kind(launcher)) not in at_once:
        yield
        return
    plugins: Any = Plugins.instance()
    instantiate = plugins.instantiate_launcher
    plugins.instantiate_launcher = lambda **given: OneByOne(instantiate(**given), at_once[name], killed, stopping)
    try:
        with connected(launcher.ray.init) if name == "RayLauncher" else nullcontext():
            yield
    finally:
        del plugins.instantiate_launcher  # the method shows again
