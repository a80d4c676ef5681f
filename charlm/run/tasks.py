"""What ``task=`` chooses, and the number that each gives Hydra's sweepers to minimise."""

from __future__ import annotations

import math

from charlm.run import experiment
from charlm.run.compose import Job
from charlm.run.settings import Settings


def perform(settings: Settings, job: Job) -> float:
    """Do what ``settings.task`` says.

    Returns the best loss of a training, the lowest smoothed loss of a range test, or a profile's seconds per character.
    """
    if settings.task == "lr_find":
        from charlm.run.lr_find import lr_find

        return min((point.smoothed for point in lr_find(settings, job).points), default=math.inf)
    if settings.task == "profile":
        from charlm.run.profile import profile

        return 1 / profile(settings, job).characters_per_second
    return experiment.run(settings, job).nats
