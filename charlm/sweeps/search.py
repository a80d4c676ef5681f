"""``python train.py task=search``: many runs, each with other settings, to find those with the lowest loss."""

from __future__ import annotations

import importlib
import math
import os
import sys
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from filelock import FileLock, Timeout

from charlm.checkpoint.paths import resume_command
from charlm.errors import UsageError
from charlm.run.compose import Job
from charlm.run.environment import WORLD
from charlm.run.resume import check_unused
from charlm.run.search_options import POPULATION, SearchOptions
from charlm.run.settings import Settings
from charlm.run.suggest import option_of
from charlm.sweeps.command import EXTENDABLE
from charlm.sweeps.display import Display, new_console
from charlm.sweeps.folder import ENDED, SEARCH, JobRecord, SweepFolder
from charlm.sweeps.search_results import SearchResult, conclude
from charlm.sweeps.space import check_space, fixed
from charlm.sweeps.trial import check_some_work, new_record, run_trial
from charlm.training.interrupt import Interrupt, Interrupted

if TYPE_CHECKING:
    from charlm.sweeps.study import Trials


def search(settings: Settings, job: Job) -> SearchResult:
    """Search as ``settings.search`` says, in the folder of `job`; or resume the search that this folder holds.

    Several processes may do so at once: each runs other trials. Raises UsageError for what the user can fix, and
    Interrupted when the user stops it.
    """
    options, space = settings.search, settings.search.parameters()
    if not space:
        example = "'search.space={optimizer.lr: {low: 1e-4, high: 1e-2, log: true}, model.layers: [1, 2]}'"
        raise UsageError(f"task=search needs a space to search, such as {example}")
    try:
        from charlm.sweeps.study import Trials
    except ModuleNotFoundError as error:
        raise UsageError(f"task=search needs {error.name}: install it with pip install -e '.[sweep]'") from None
    engine = work if options.engine == "optuna" else engine_of_ray()
    if job.hydra is not None and own_configs(job.hydra["hydra"]):
        raise UsageError("task=search takes its configs from conf/ only: leave out -cn, --config-dir and the like")
    if WORLD > 1:
        raise UsageError("task=search cannot be started with torchrun: its trials train in one process each")
    base = fixed(job.overrides, space)
    check_space(base, space)
    epochs = settings.trainer.max_epochs
    if options.pruner == POPULATION and isinstance(epochs, int) and epochs < options.warmup + 2:
        raise UsageError(
            f"search.pruner=population changes nothing in trainer.max_epochs={epochs} with search.warmup="
            f"{options.warmup}: train for {options.warmup + 2} epochs at least"
        )
    folder = SweepFolder(Path(os.path.relpath(job.folder)))
    alone = open_folder(folder, job, options)
    first = FileLock(folder.jobs / "lock", timeout=0)  # the same command, typed again meanwhile, starts a new search
    try:
        first.acquire()
    except Timeout:
        if options.engine == "ray":
            raise UsageError(f"{folder.path} is run by another process: more machines join its Ray cluster") from None
    trials, interrupt, problem = Trials(folder.path, options), Interrupt(), None
    display = Display(new_console(), lambda: records(folder, options.trials), list(space), "trial")
    try:
        with display, interrupt.listening():
            engine(folder, trials, settings, job, base, interrupt)
    except Interrupted:
        if interrupt.signal is None:
            raise
    except UsageError as error:
        problem = error
    if problem is not None and not folder.records():
        first.release()
        folder.remove_unused()
        raise problem
    found = records(folder, options.trials)
    display.say(found)
    with alone:
        folder.write_command({**(folder.command(SEARCH) or {}), "ended": trials.complete()})
        result = conclude(folder, found, trials, base, display.console)
    if interrupt.signal is not None:
        print(f"resume with\n  {resume_command(folder.path)}", file=sys.stderr)
        raise Interrupted(interrupt.signal)
    if problem is not None or result is None:
        raise problem or UsageError(f"no trial was finished; resume with {resume_command(folder.path)}")
    return result


def engine_of_ray() -> Callable[..., None]:
    """What runs the trials in a Ray cluster. Raises UsageError if Ray Tune is not installed."""
    try:
        importlib.import_module("ray.tune")
    except ImportError:
        raise UsageError("search.engine=ray needs Ray Tune: install it with pip install -e '.[sweep,ray]'") from None
    from charlm.sweeps.tune import work

    return work


def own_configs(hydra: dict[str, Any]) -> bool:
    """Whether the command line names other configs than those in ``conf/``, of which a trial would know nothing."""
    sources = [source["provider"] for source in hydra["runtime"]["config_sources"]]
    return hydra["job"]["config_name"] != "train" or any("command-line" in provider for provider in sources)


def open_folder(folder: SweepFolder, job: Job, options: SearchOptions) -> FileLock:
    """Write the search's command to its folder. Raises UsageError if that holds something else.

    Returns a lock for what only one process may do at a time.
    """
    command = {
        "overrides": job.overrides,
        "options": {name: v for name, v in options.model_dump().items() if f"search.{name}" not in EXTENDABLE},
        "ended": False,
    }
    try:
        folder.jobs.mkdir(parents=True, exist_ok=True)
        with (alone := FileLock(folder.jobs / "results.lock")):
            check_same(folder, command)
            folder.write_command(command)
    except OSError as error:
        raise UsageError(f"{folder.path} cannot be written: {error.strerror or error}; choose another folder") from None
    return alone


def without_limits(overrides: Sequence[str]) -> list[str]:
    """`overrides` without how long a search may be."""
    return [override for override in overrides if option_of(override) not in EXTENDABLE]


def check_same(folder: SweepFolder, command: dict[str, Any]) -> None:
    """Raise UsageError if the folder holds a run, or another search."""
    earlier = folder.command(SEARCH)
    if folder.command() is not None:
        raise UsageError(f"{folder.path} holds a sweep: choose another hydra.run.dir")
    if earlier is None:
        check_unused(folder.path)
    elif without_limits(earlier["overrides"]) != without_limits(command["overrides"]):
        raise UsageError(
            f"{folder.path} holds another search ({' '.join(map(str, earlier['overrides']))}): choose another "
            f"hydra.run.dir, or resume it with {resume_command(folder.path)}"
        )
    elif earlier["options"] != command["options"]:
        raise UsageError(f"{folder.path} was begun with other options, and conf/ has changed since: start a new search")


def work(
    folder: SweepFolder, trials: Trials, settings: Settings, job: Job, base: list[str], interrupt: Interrupt
) -> None:
    """Run trials until there are enough, the time is over, or the user stops. Raises UsageError if none works."""
    began, limit = time.monotonic(), 60 * (settings.search.minutes or math.inf)
    while interrupt.signal is None and time.monotonic() < began + limit:
        with trials.claimed() as trial:
            if trial is None:
                return
            record = folder.read(trial.number) or new_record(trial, trials, settings, job, base)
            if record.status not in ENDED:  # else it ended just before its process was killed
                hopeless = partial(trials.hopeless, trial) if settings.search.pruner else None
                run_trial(folder, record, lambda: interrupt.signal is not None, hopeless=hopeless)
            trials.tell(trial, record)
        check_some_work(folder)


def records(folder: SweepFolder, trials: int) -> list[JobRecord]:
    """The records of all trials, empty ones of those that have not begun."""
    found = folder.records()
    return [found.get(number, JobRecord(number, [], "")) for number in range(max([trials, *(n + 1 for n in found)]))]
