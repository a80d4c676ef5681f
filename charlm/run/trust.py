"""Which classes a config may name."""

from __future__ import annotations

import os
from typing import Any

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from charlm.checkpoint.building import resolve_class
from charlm.errors import UsageError

# A config may come with a checkpoint from anywhere, so it makes nothing but what these modules define.
TRUSTED = (
    "charlm.training.callbacks",
    "charlm.text.sources",
    "charlm.run.loggers",
    "charlm.training.schedulers",
)

# Of Lightning's callbacks, those that write nothing; others delete and overwrite the files that a config names.
CALLBACKS = [
    f"pytorch_lightning.callbacks.{name}"
    for name in ("EarlyStopping", "EMAWeightAveraging", "LearningRateMonitor", "WeightAveraging")
]

TRUST = "CHARLM_TRUST"  # the environment variable with the user's own packages: no file can set it


def check_targets(value: Any) -> None:
    """Raise UsageError if something below `value` would be made by code that is not trusted."""
    if isinstance(value, list):
        for part in value:
            check_targets(part)
    elif isinstance(value, dict):
        if "_target_" in value and not is_trusted(value["_target_"]):
            raise UsageError(
                f"_target_={str(value['_target_'])[:80]!r} is not made from a config, which may come from anywhere: "
                f"if you trust the package that it is in, set {TRUST}=PACKAGE in the environment"
            )
        check_targets(list(value.values()))


def is_trusted(target: object) -> bool:
    """Whether a config may have `target` made: what is the user's own, or charlm's, or listed here.

    Of ``torch.optim``, only optimisers and schedules: some of its functions change how all others work.
    """
    own = list(filter(None, os.environ.get(TRUST, "").split(",")))
    if target in CALLBACKS or resolve_class(target, [*TRUSTED, *own]) is not None:
        return True
    made = resolve_class(target, ["torch.optim"])
    if made is None:
        return False
    return isinstance(made, type) and issubclass(made, Optimizer | LRScheduler)
