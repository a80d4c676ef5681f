"""One trial of a search: a run that may be pruned, in a folder of the search."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING

from charlm.run import experiment
from charlm.run.compose import compose_job
from charlm.sweeps.folder import JobRecord, SweepFolder
from charlm.sweeps.recording import recorded
from charlm.training.callbacks.divergence_guard import Diverged

if TYPE_CHECKING:
    from optuna.trial import Trial

    from charlm.sweeps.study import Trials


def run_trial(
    search: SweepFolder, trials: Trials, trial: Trial, record: JobRecord, stopping: Callable[[], bool]
) -> None:
    """Run the trial of `record`, or resume it. The record says how it ended.

    Raises Interrupted if it was `stopping`.
    """
    folder = search.path / record.folder
    resumable = (folder / "checkpoints/last.ckpt").is_file()
    hopeless = None if trials.options.pruner is None else lambda *seen: trials.hopeless(trial, *seen)
    with recorded(search, record, afresh=not resumable) as report:
        settings, job = compose_job(record.overrides, folder)
        job = replace(job, sweep=search.path, report=report, stopping=stopping, signals=False, hopeless=hopeless)
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
