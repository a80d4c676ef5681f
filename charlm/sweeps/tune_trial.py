"""One trial of a search in a process of Ray's, as `charlm.sweeps.tune` starts it on any machine of the cluster."""

from __future__ import annotations

import logging
import os
import platform
import signal
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

from ray import tune

from charlm.errors import UsageError
from charlm.run.search_options import POPULATION
from charlm.sweeps.folder import ENDED, SweepFolder
from charlm.sweeps.job import alone
from charlm.sweeps.population import finish_take_over, take_over
from charlm.sweeps.recording import output_to
from charlm.sweeps.trial import run_trial
from charlm.training.interrupt import Interrupted, Paused


def train(config: dict[str, Any], *, folder: Path, here: Path, base: list[str], pruner: str | None) -> None:
    """Run a trial in a process of Ray's, or resume it. Its record says how it ended.

    A trial of a population whose checkpoint is that of another one takes it over, with the settings in `config`.
    """
    os.environ["TUNE_FUNCTION_THREAD_TIMEOUT_S"] = "60"  # for a trial that is paused to end
    logging.getLogger("ray").setLevel(logging.ERROR)
    search, number = SweepFolder(folder), int(str(tune.get_context().get_trial_name()))
    reported, record = tune.get_checkpoint(), search.read(number)
    if record is None:
        raise UsageError(f"{platform.node()} does not see {folder}, which all machines must share")
    run = search.path / record.folder
    os.chdir(here)
    threads = int(tune.get_context().get_trial_resources().required_resources["CPU"])

    def hopeless(validation: int, nats: float) -> bool:
        tune.report({"nats": nats, "validation": validation})
        with suppress(OSError):
            return validation >= int(verdict(search, number).read_text())
        return False

    def between(epoch: int, nats: float) -> None:
        try:
            checkpoints = tune.Checkpoint.from_directory(run / "checkpoints")
            tune.report({"nats": nats, "epoch": epoch}, checkpoint=checkpoints)
        except SystemExit:  # what Ray Tune raises to pause a trial
            raise Paused(signal.SIGTERM) from None

    hooks = {} if pruner is None else {"between": between} if pruner == POPULATION else {"hopeless": hopeless}
    # Another process may still train this trial: one that was paused, or on a machine that Ray has given up.
    with suppress(Interrupted), alone(search.jobs / f"{number}.lock", search.stopping):
        record = search.read(number)
        if record is None or record.status in ENDED or search.stopping():
            return
        if pruner == POPULATION:
            finish_take_over(search, record)
        if reported is not None and Path(reported.path).parent.name != str(number):
            with output_to(run / "train.log"):
                take_over(search, record, Path(reported.path), base, config["trial"]["settings"])
        try:
            run_trial(search, record, search.stopping, **hooks, threads=threads)
        except Paused:
            record.status = "waiting"
            search.write(record)
            sys.exit(0)  # as Ray Tune expects


def verdict(folder: SweepFolder, number: int) -> Path:
    """The file that holds the validation after which a trial is pruned."""
    return folder.jobs / f"{number}.pruned"
