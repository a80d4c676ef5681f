"""Which classes the config of a checkpoint may name. What the user composes may name any."""

from __future__ import annotations

import os
from typing import Any

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from charlm.checkpoint.building import TRUST, resolve_class
from charlm.errors import UsageError

# A checkpoint may come from anywhere, so its config builds nothing but what these modules define.
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


def check_targets(value: Any) -> None:
    """Raise UsageError if something below `value` would be made by code that is not trusted."""
    if isinstance(value, list):
        for part in value:
            check_targets(part)
    elif isinstance(value, dict):
        if "_target_" in value and not is_trusted(value["_target_"]):
            raise UsageError(
                f"_target_={str(value['_target_'])[:80]!r} is named in a checkpoint, which may come from anywhere: "
                f"if you trust the package that it is in, set {TRUST}=PACKAGE in the environment"
            )
        check_targets(list(value.values()))


def is_trusted(target: object) -> bool:
    """Whether a checkpoint's config may name `target`: what the user trusts, or charlm's, or listed here.

    Of ``torch.optim``, only optimisers and schedules: some of its functions change how all others work.
    """
    own = list(filter(None, os.environ.get(TRUST, "").split(",")))
    if target in CALLBACKS or resolve_class(target, [*TRUSTED, *own]) is not None:
        return True
    made = resolve_class(target, ["torch.optim"])
    if made is None:
        return False
    return isinstance(made, type) and issubclass(made, Optimizer | LRScheduler)
