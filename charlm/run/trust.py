"""The classes that a checkpoint's config may name. The user's own config may name any class."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from charlm.checkpoint.building import TRUST, package_of, resolve_class
from charlm.errors import UsageError

# A checkpoint may come from anywhere, so its config may only name what these modules define.
TRUSTED = (
    "charlm.training.callbacks",
    "charlm.text.sources",
    "charlm.run.loggers",
    "charlm.training.schedulers",
    "charlm.training.warmups",
)

# Lightning callbacks that write no files. Others delete and overwrite files that a config names.
CALLBACKS = [
    f"pytorch_lightning.callbacks.{name}"
    for name in ("EarlyStopping", "EMAWeightAveraging", "LearningRateMonitor", "WeightAveraging")
]


def check_targets(value: Any) -> None:
    """Raise UsageError if a ``_target_`` in `value` is not trusted."""
    for target in untrusted(value):
        raise UsageError(
            f"_target_={str(target)[:80]!r} is named in a checkpoint, which may come from anybody: if you trust that "
            f"package, set {TRUST}=PACKAGE in the environment"
        )


def untrusted(value: Any) -> Iterator[Any]:
    """Each ``_target_`` in `value` that is not trusted."""
    if isinstance(value, list):
        for part in value:
            yield from untrusted(part)
    elif isinstance(value, dict):
        if "_target_" in value and not is_trusted(value["_target_"]):
            yield value["_target_"]
        yield from untrusted(list(value.values()))


def trust_prefix(config: dict[str, Any]) -> str:
    """What must precede a command that opens a checkpoint with this config: ``CHARLM_TRUST=… `` or nothing."""
    packages = {package_of(target) for target in untrusted(config)} - {"charlm"}
    return f"{TRUST}={','.join(sorted(packages))} " if packages else ""


def is_trusted(target: object) -> bool:
    """Whether a checkpoint's config may name `target`: charlm's own, listed above, or in a package the user trusts.

    From ``torch.optim``, only optimisers and schedulers: some of its functions change the behaviour of all others.
    """
    own = list(filter(None, os.environ.get(TRUST, "").split(",")))
    if target in CALLBACKS or resolve_class(target, [*TRUSTED, *own]) is not None:
        return True
    made = resolve_class(target, ["torch.optim"])
    if made is None:
        return False
    return isinstance(made, type) and issubclass(made, Optimizer | LRScheduler)
