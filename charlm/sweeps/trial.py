"""One trial of a search: a run that may be pruned, with its output in ``train.log`` and its record kept up to date."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from charlm.errors import UsageError, first_line
from charlm.run import experiment
from charlm.run.compose import compose_job
from charlm.run.resume import holds_a_run
from charlm.sweeps.folder import JobRecord, SweepFolder
from charlm.sweeps.job import output_to, set_aside
from charlm.training.callbacks.divergence_guard import Diverged
from charlm.training.interrupt import Interrupted

if TYPE_CHECKING:
    from optuna.trial import Trial

    from charlm.sweeps.study import Trials


def run_trial(
    search: SweepFolder, trials: Trials, trial: Trial, record: JobRecord, stopping: Callable[[], bool]
) -> None:
    """Run the trial of `record`, or resume it. The record says how it ended.

    Raises Interrupted if it was `stopping`.
    """
    folder, started = search.path / record.folder, time.monotonic()
    resumable = (folder / "checkpoints/last.ckpt").is_file()

    def report(progress: dict[str, Any], *, durable: bool = False) -> None:
        for name, value in progress.items():
            setattr(record, name, value)
        with suppress(OSError):  # an observer
            search.write(record, durable=durable)

    def end(status: str, **more: Any) -> None:
        report({"status": status, "left": 0.0, **more}, durable=True)

    report({"status": "running"}, durable=True)
    if not resumable and holds_a_run(folder):  # killed before its first checkpoint
        set_aside(folder, search.path)
    folder.mkdir(parents=True, exist_ok=True)
    hopeless = None if trials.options.pruner is None else lambda *seen: trials.hopeless(trial, *seen)
    try:
        with output_to(folder / "train.log"):
            settings, job = compose_job(record.overrides, folder)
            job = replace(job, sweep=search.path, report=report, stopping=stopping, signals=False, hopeless=hopeless)
            if resumable:
                settings = settings.model_copy(update={"resume": str(folder)})
            else:
                job = replace(job, number=record.number)
            result = experiment.run(settings, job)
    except Interrupted:
        end("interrupted")
        raise
    except Diverged as error:  # no mistake of the user's
        end("diverged", nats=None, error=str(error))
    except Exception as error:
        end("failed", error=str(error) if isinstance(error, UsageError) else f"{first_line(error)} (see its train.log)")
    else:
        seconds = max(time.monotonic() - started, record.seconds)
        end("pruned" if "pruned" in result.summary else "finished", nats=result.nats, seconds=seconds)
