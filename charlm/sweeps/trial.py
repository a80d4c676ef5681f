"""One trial of a search: a run that may be pruned, in a folder of the search."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING

from charlm.checkpoint.paths import model_name, run_name
from charlm.errors import UsageError
from charlm.run import experiment
from charlm.run.compose import Job, compose_job, with_own_threads
from charlm.run.settings import Settings
from charlm.sweeps.folder import JobRecord, SweepFolder
from charlm.sweeps.recording import recorded
from charlm.sweeps.space import with_settings
from charlm.training.callbacks.divergence_guard import Diverged

if TYPE_CHECKING:
    from optuna.trial import Trial

    from charlm.sweeps.study import Trials

FAILURES = 3  # trials that may fail before one has worked


def run_trial(
    search: SweepFolder,
    record: JobRecord,
    stopping: Callable[[], bool],
    *,
    hopeless: Callable[[int, float], bool] | None = None,
    between: Callable[[int, float], None] | None = None,
    threads: int | None = None,
) -> None:
    """Run the trial of `record`, or resume it, with `threads` unless the user has chosen. The record says how it ended.

    `hopeless` and `between` are those of `Job`. Raises Interrupted if it was `stopping`.
    """
    folder = search.path / record.folder
    resumable = (folder / "checkpoints/last.ckpt").is_file()
    with recorded(search, record, afresh=not resumable) as report:
        settings, job = compose_job(record.overrides, folder)
        settings = with_own_threads(settings, job, threads)
        job = replace(job, sweep=search.path, report=report, stopping=stopping, signals=False)
        job = replace(job, hopeless=hopeless, between=between)
        if resumable:
            settings = settings.model_copy(update={"resume": str(folder)})
        else:
            job = replace(job, number=record.number)
        try:
            result = experiment.run(settings, job)
        except Diverged as error:  # no mistake of the user's
            print(f"error: {error}")
            record.status, record.nats, record.error = "diverged", None, str(error)
        else:
            record.nats = result.nats
            if "pruned" in result.summary:
                record.status = "pruned"


def new_record(trial: Trial, trials: Trials, settings: Settings, job: Job, base: list[str]) -> JobRecord:
    """The record of a trial that has not begun."""
    chosen = trials.settings(trial)
    overrides = with_settings(base, chosen)
    model = model_name(chosen.get("model", job.model), overrides)
    folder = f"{trial.number}_{run_name('train', settings.init_from, model)}_{settings.data.name}"
    return JobRecord(trial.number, overrides, folder, model=model)


def check_some_work(search: SweepFolder) -> None:
    """Raise UsageError if the first trials have all failed."""
    found = list(search.records().values())
    if len(found) >= FAILURES and all(record.status == "failed" for record in found):
        raise UsageError(f"the first {len(found)} trials failed, the last one with: {found[-1].error}")
