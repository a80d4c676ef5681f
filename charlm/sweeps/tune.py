"""``search.engine=ray``: Ray Tune runs the trials of a search on all machines of a Ray cluster.

What is tried, what is pruned, and which trials have ended is kept as with the other engine: in Optuna's journal and the
records of the search's folder, which all machines share. So Ray Tune's own files are not needed to go on.
"""

from __future__ import annotations

import logging
import os
import shutil
import signal
import sys
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout, suppress
from functools import partial
from pathlib import Path
from typing import Any

import ray
from omegaconf import OmegaConf
from optuna.trial import Trial
from ray import tune
from ray.exceptions import RayActorError
from ray.tune.schedulers import FIFOScheduler, TrialScheduler
from ray.tune.search import Searcher

from charlm.errors import UsageError
from charlm.run.compose import Job
from charlm.run.search_options import POPULATION
from charlm.run.settings import Settings
from charlm.sweeps.folder import ENDED, JobRecord, SweepFolder
from charlm.sweeps.population import scheduler
from charlm.sweeps.ray_cluster import connected
from charlm.sweeps.results import settings_of
from charlm.sweeps.study import Trials
from charlm.sweeps.trial import check_some_work, new_record
from charlm.sweeps.tune_trial import train, verdict
from charlm.training.interrupt import Interrupt, Interrupted

RETRIES = 3  # of a trial whose process or machine is lost
KEPT = 8  # checkpoints of a trial: another one may be about to take over one, and Ray Tune counts each twice
PATIENCE = 60  # seconds without any trial after which that is said
ENVIRONMENT = {  # Ray Tune leaves signals, the current folder and its results to us
    "RAY_CHDIR_TO_TRIAL_DIR": "0",
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    "TUNE_DISABLE_SIGINT_HANDLER": "1",
    "TUNE_DISABLE_STRICT_METRIC_CHECKING": "1",
    "TUNE_PRINT_ALL_TRIAL_ERRORS": "0",
}


def work(
    folder: SweepFolder, trials: Trials, settings: Settings, job: Job, base: list[str], interrupt: Interrupt
) -> None:
    """Run trials until there are enough, the time is over, or the user stops.

    Raises UsageError if none works, or if there is no cluster.
    """
    if os.environ.get("RAY_ADDRESS", "").startswith("ray://"):
        raise UsageError("search.engine=ray starts on a machine of the cluster: give RAY_ADDRESS=HOST:6379, not ray://")
    folder.go_on()
    queue = Queue(folder, trials, settings, job, base, interrupt)
    shutil.rmtree(queue.files, ignore_errors=True)
    try:
        # Ray handles signals in its own way until we do so again.
        with variables(ENVIRONMENT), silent(), connected(OmegaConf.create()), interrupt.listening():
            function = tune.with_resources(
                partial(train, folder=queue.path, here=Path.cwd(), base=base, pruner=trials.options.pruner),
                resources(settings),
            )
            while queue.begin():
                tuner(function, queue).fit()
    except Exception:
        if interrupt.signal is None:
            raise
        raise Interrupted(interrupt.signal) from None  # a second signal, of which Ray makes another error
    finally:
        queue.close()
    if queue.problem is not None:
        raise queue.problem


def tuner(function: Any, queue: Queue) -> tune.Tuner:
    """What runs the trials of the `queue` with `function`."""
    options = queue.trials.options
    population = options.pruner == POPULATION
    return tune.Tuner(
        function,
        # Ray Tune does not combine a population with a `Searcher`.
        param_space={"trial": tune.grid_search(queue.waiting)} if population else None,
        tune_config=tune.TuneConfig(
            metric="nats",
            mode="min",
            search_alg=None if population else Suggestions(queue),
            scheduler=scheduler(options, queue.base) if population else Pruner(queue),
            num_samples=1 if population else -1,
            reuse_actors=True,
            trial_name_creator=number_of,
            trial_dirname_creator=number_of,
        ),
        run_config=tune.RunConfig(
            name="trials",
            storage_path=str(queue.files),
            failure_config=tune.FailureConfig(max_failures=RETRIES),
            checkpoint_config=tune.CheckpointConfig(num_to_keep=KEPT),
            callbacks=[Events(queue)],
            verbose=0,
        ),
    )


@contextmanager
def variables(values: dict[str, str]) -> Iterator[None]:
    """Set environment variables in this context, and for the processes that begin in it. Ray sets some, too."""
    before = dict(os.environ)
    os.environ.update(values)
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


@contextmanager
def silent() -> Iterator[None]:
    """Nothing is printed in this context, but for what holds on to the terminal, such as our table."""
    logger = logging.getLogger("ray.tune")
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        with open(os.devnull, "w") as nowhere, redirect_stdout(nowhere), redirect_stderr(nowhere):
            yield
    finally:
        logger.setLevel(level)


def resources(settings: Settings) -> dict[str, float]:
    """What a trial needs of a machine. Raises UsageError if this one alone is the cluster and has less."""
    options, threads, cluster = settings.trainer, settings.trainer.threads, ray.cluster_resources()
    gpu = options.accelerator in ("gpu", "cuda") or (options.accelerator == "auto" and cluster.get("GPU", 0) > 0)
    needs: dict[str, float] = {"cpu": threads if isinstance(threads, int) else 1, "gpu": int(gpu)}
    if "RAY_ADDRESS" not in os.environ:
        if cluster.get("GPU", 0) < gpu:
            raise UsageError("this machine, which is the whole Ray cluster, has no GPU: set trainer.accelerator=cpu")
        if cluster["CPU"] < needs["cpu"]:
            has = f"has {cluster['CPU']:g} CPUs, and a trial needs {needs['cpu']}: lower trainer.threads"
            raise UsageError(f"this machine, which is the whole Ray cluster, {has}")
    return needs


def number_of(trial: Any) -> str:
    """The name of one of Ray Tune's trials, when it is made."""
    return str(trial.config["trial"]["number"])


class Queue:
    """The trials of a search that run in the cluster, as the process knows them that runs the search."""

    def __init__(
        self, folder: SweepFolder, trials: Trials, settings: Settings, job: Job, base: list[str], interrupt: Interrupt
    ) -> None:
        self.folder, self.trials, self.settings, self.job, self.base = folder, trials, settings, job, base
        self.path = folder.path.resolve()
        self.files = self.path / ".ray"
        self.interrupt = interrupt
        self.problem: UsageError | None = None  # for which the search ends
        self.running: dict[int, Trial] = {}
        self.waiting: list[dict[str, Any]] = []  # those to begin with
        self.errors = sys.stderr  # Ray's own is hidden
        self._lost: Counter[int] = Counter()
        self._until = time.monotonic() + 60 * (trials.options.minutes or float("inf"))

    def __getstate__(self) -> dict[str, Any]:
        """Nothing: Ray Tune writes down what it is given, but is not asked to go on with that."""
        return {}

    def begin(self) -> bool:
        """Take trials for Ray Tune to begin with; returns whether there are any.

        That is one, or a whole population; afterwards those that Ray Tune has given up because their process was lost.
        """
        for trial in self.running.values():
            self.trials.release(trial)
        self.running.clear()
        population = self.trials.options.pruner == POPULATION
        self.waiting = list(iter(self.take, None)) if population else [taken] if (taken := self.take()) else []
        return bool(self.waiting)

    def take(self) -> dict[str, Any] | None:
        """A trial to begin or to go on with, as `train` is told; None if no further one begins."""
        while not self.stopping():
            trial = self.trials.claim(new=time.monotonic() < self._until)
            if trial is None:
                return None
            record = self.folder.read(trial.number)
            self.running[trial.number] = trial
            if record is not None and record.status in ENDED:  # just before the search was killed
                self.ended(trial.number)
                continue
            if record is None:
                record = new_record(trial, self.trials, self.settings, self.job, self.base)
                self.folder.write(record)
            chosen = settings_of(record.overrides)
            return {"number": trial.number, "settings": {name: chosen[name] for name in self.trials.space}}
        return None

    def ended(self, number: int, error: Exception | None = None) -> None:
        """Note that a trial does not run any more, and why Ray Tune has given it up, if it has."""
        record = self.folder.read(number)
        if number not in self.running or record is None:
            return
        if record.status not in ENDED:
            if not self.stopping():
                self._given_up(record, error)
            if record.status not in ENDED:  # `begin` takes it again
                return
        trial = self.running[number]
        self.trials.tell(trial, record)
        self.trials.release(self.running.pop(number))
        try:
            check_some_work(self.folder)
        except UsageError as problem:
            self.problem = problem

    def _given_up(self, record: JobRecord, error: Exception | None) -> None:
        """Note that a trial has failed, unless Ray Tune has only failed to start it again in a process that is lost."""
        self._lost[record.number] += 1
        if error is None and self._lost[record.number] <= RETRIES:
            return
        lines = [] if error is None or isinstance(error, RayActorError) else str(error).strip().splitlines()
        why = lines[-1] if lines else "its process was lost, perhaps because the memory was full"
        record.status, record.error = "failed", why
        self.folder.write(record)

    def stopping(self) -> bool:
        """Whether the search ends before its trials do."""
        return self.interrupt.signal is not None or self.problem is not None

    def close(self) -> None:
        """Leave the trials that have not ended to whoever goes on with the search, and delete Ray Tune's files."""
        for record in self.folder.records().values():
            if record.status in ("waiting", "running") and record.epoch:
                record.status = "interrupted"
                self.folder.write(record)
        for trial in self.running.values():
            self.trials.release(trial)
        self.running.clear()
        shutil.rmtree(self.files, ignore_errors=True)


class Suggestions(Searcher):
    """Tells Ray Tune which trials there are, one after another."""

    def __init__(self, queue: Queue) -> None:
        super().__init__("nats", "min")
        self.queue = queue

    def suggest(self, trial_id: str) -> Any:
        """The next trial."""
        taken = self.queue.waiting.pop() if self.queue.waiting else self.queue.take()
        return self.FINISHED if taken is None else {"trial": taken}

    def on_trial_complete(self, trial_id: str, result: Any = None, error: bool = False) -> None:
        """Nothing: see `Events`."""


class Pruner(FIFOScheduler):
    """Has trials pruned as without Ray.

    A trial that Ray Tune itself stops has no time to save. So it is told in a file, and ends by itself.
    """

    def __init__(self, queue: Queue) -> None:
        super().__init__()
        self.queue = queue

    def on_trial_result(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> str:
        """What a trial reports after a validation."""
        running = self.queue.running.get(int(str(trial)))
        if running is not None and not result.get("done"):
            with suppress(Exception):  # an observer
                if self.queue.trials.hopeless(running, result["validation"], result["nats"]):
                    verdict(self.queue.folder, running.number).write_text(str(result["validation"]))
        return TrialScheduler.CONTINUE


class Events(tune.Callback):
    """Tells the trials when to stop, and keeps what has become of each."""

    def __init__(self, queue: Queue) -> None:
        self.queue = queue
        self._idle = time.monotonic()  # since when no trial runs

    def on_step_begin(self, iteration: int, trials: list[Any], **info: Any) -> None:
        """Those that run save and end; those that do not run yet end at once."""
        if self.queue.stopping():
            self.queue.folder.stop(self.queue.interrupt.signal or signal.SIGTERM)
        if any(trial.status == "RUNNING" for trial in trials):
            self._idle = time.monotonic()
        elif time.monotonic() > self._idle + PATIENCE:
            self._idle = float("inf")
            print("the Ray cluster has had no room for a trial for a minute: see ray status", file=self.queue.errors)

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """A trial has ended by itself."""
        self.queue.ended(int(str(trial)))

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """Ray Tune has given up a trial."""
        self.queue.ended(int(str(trial)), trial.get_error())
