"""``python train.py task=search``: many runs, each with other settings, to find those with the lowest loss."""

from __future__ import annotations

import math
import os
import sys
import time
from contextlib import redirect_stderr
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any

from filelock import FileLock

from charlm.checkpoint.paths import model_name, run_name
from charlm.errors import UsageError
from charlm.run.compose import Job
from charlm.run.resume import check_unused
from charlm.run.search_options import SearchOptions
from charlm.run.settings import Settings
from charlm.sweeps.command import EXTENDABLE, go_on, without_limits
from charlm.sweeps.display import Display
from charlm.sweeps.folder import JobRecord, SweepFolder
from charlm.sweeps.search_results import SearchResult, conclude
from charlm.sweeps.space import check_space, fixed
from charlm.sweeps.trial import run_trial
from charlm.training.interrupt import Interrupt, Interrupted

if TYPE_CHECKING:
    from optuna.trial import Trial

    from charlm.sweeps.study import Trials

ENDED = ("finished", "pruned", "diverged", "failed")
FAILURES = 3  # trials that may fail before one has worked


class Stop(Interrupt):
    """Ctrl-C, SIGTERM or SIGHUP. The user is told in the terminal, not in the log of a trial."""

    def _note(self, number: int, frame: FrameType | None) -> None:
        with redirect_stderr(sys.__stderr__):
            super()._note(number, frame)


def search(settings: Settings, job: Job) -> SearchResult:
    """Search as ``settings.search`` says, in the folder of `job`; or go on with the search that this folder holds.

    Several processes may do so at once: each runs other trials. Raises UsageError for what the user can fix, and
    Interrupted when the user stops it.
    """
    options, space = settings.search, settings.search.parameters()
    if job.number is not None:
        raise UsageError("task=search makes its own runs: leave out -m")
    if not space:
        example = "'search.space={optimizer.lr: {low: 1e-4, high: 1e-2, log: true}, model.layers: [1, 2]}'"
        raise UsageError(f"task=search needs a space to search, such as {example}")
    try:
        from charlm.sweeps.study import Trials
    except ModuleNotFoundError as error:
        raise UsageError(f"task=search needs {error.name}: install it with pip install -e '.[sweep]'") from None
    base = fixed(job.overrides, space)
    check_space(base, space)
    folder = SweepFolder(Path(os.path.relpath(job.folder)), "search")
    alone = open_folder(folder, job, options)
    trials, stop, problem = Trials(folder.path, options), Stop(), None
    display = Display(lambda: records(folder, options.trials), list(space), "trial")
    try:
        with stop.listening():
            work(folder, trials, settings, job, base, stop)
    except Interrupted:
        if stop.signal is None:
            raise
    except UsageError as error:
        problem = error
    finally:
        shown = display.close()
    with alone:
        folder.write_command({**(folder.command() or {}), "ended": trials.complete()})
        result = conclude(folder, shown, trials, base, display.console)
    if stop.signal is not None:
        print(go_on(folder.path), file=sys.stderr)
        raise Interrupted(stop.signal)
    if problem is not None or result is None:
        raise problem or UsageError(f"no trial was finished; {go_on(folder.path)}")
    return result


def open_folder(folder: SweepFolder, job: Job, options: SearchOptions) -> FileLock:
    """Write the search's command to its folder. Raises UsageError if that holds something else.

    Returns a lock for what only one process may do at a time.
    """
    command = {
        "overrides": job.overrides,
        "options": options.model_dump(exclude=set(EXTENDABLE)),
        "ended": False,
    }
    try:
        folder.jobs.mkdir(parents=True, exist_ok=True)
        with (alone := FileLock(folder.jobs / "lock")):
            check_same(folder, command)
            folder.write_command(command)
    except OSError as error:
        raise UsageError(f"{folder.path} cannot be written: {error.strerror or error}; choose another folder") from None
    return alone


def check_same(folder: SweepFolder, command: dict[str, Any]) -> None:
    """Raise UsageError if the folder holds a run, or another search."""
    earlier = folder.command()
    if earlier is None:
        check_unused(folder.path)
    elif without_limits(earlier["overrides"]) != without_limits(command["overrides"]):
        raise UsageError(
            f"{folder.path} holds another search ({' '.join(map(str, earlier['overrides']))}): choose another "
            f"hydra.run.dir, or {go_on(folder.path)}"
        )
    elif earlier.get("options") != command["options"]:
        raise UsageError(f"{folder.path} was begun with other options, and conf/ has changed since: start a new search")


def work(folder: SweepFolder, trials: Trials, settings: Settings, job: Job, base: list[str], stop: Stop) -> None:
    """Run trials until there are enough, the time is over, or the user stops. Raises UsageError if none works."""
    began, limit = time.monotonic(), 60 * (settings.search.minutes or math.inf)
    while stop.signal is None and time.monotonic() < began + limit:
        with trials.claimed() as trial:
            if trial is None:
                return
            record = folder.read(trial.number) or new_record(trial, trials, settings, job, base)
            if record.status not in ENDED:  # else it ended just before its process was killed
                run_trial(folder, trials, trial, record, lambda: stop.signal is not None)
            trials.tell(trial, record)
        found = list(folder.records().values())
        if len(found) >= FAILURES and all(record.status == "failed" for record in found):
            raise UsageError(f"the first {len(found)} trials failed, the last one with: {found[-1].error}")


def new_record(trial: Trial, trials: Trials, settings: Settings, job: Job, base: list[str]) -> JobRecord:
    """The record of a trial that has not begun."""
    chosen = trials.settings(trial)
    overrides = [*base, *(f"{name}={value}" for name, value in chosen.items())]
    model = model_name(chosen.get("model", job.model), overrides)
    folder = f"{trial.number}_{run_name('train', settings.init_from, model)}_{settings.data.name}"
    return JobRecord(trial.number, overrides, folder, model=model)


def records(folder: SweepFolder, trials: int) -> list[JobRecord]:
    """The records of all trials, empty ones of those that have not begun."""
    found = folder.records()
    return [found.get(number, JobRecord(number, [], "")) for number in range(max([trials, *(n + 1 for n in found)]))]
