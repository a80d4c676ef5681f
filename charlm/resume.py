"""Go on with a run that was killed, interrupted, or is to become longer: ``python train.py resume=RUN``.

Everything comes from the checkpoint: config, corpus checksum, weights, optimiser, schedule, carried state,
place in the epoch, random states, and the rows of ``metrics.csv`` so far. The result is the same, bit for
bit, as if the run had never stopped (on the CPU, with the same number of threads).
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from charlm import checkpoint
from charlm.errors import UsageError
from charlm.runs import find, folder_of

# What a resumed run may change: how long and where it trains, what it reports, and where its text lies now.
FREE = (
    "resume",
    "trainer.max_epochs",
    "trainer.accelerator",
    "trainer.devices",
    "trainer.log_every_n_steps",
    "checkpoint",
    "logger",
    "data.path",
    "data.paths",
)


@dataclass(frozen=True)
class Stopped:
    """A run to go on with: the checkpoint, the run's folder, its settings and what else it recorded."""

    path: Path
    folder: Path
    settings: dict[str, Any]
    corpus: dict[str, Any]
    run: dict[str, Any]


def recall(config: DictConfig, overrides: list[str]) -> Stopped:
    """What the checkpoint of ``config.resume`` recorded, with those `overrides` that a resumed run may change.

    Raises UsageError for a checkpoint that cannot be used and for overrides that would make it another run.
    """
    path = find(config.resume)
    opened = checkpoint.read(path)
    if not opened.run:
        raise UsageError(f"{path} was written by an older charlm, which could not resume: train anew")
    saved = OmegaConf.create(escape(opened.config))
    before = opened.run.get("overrides") or []
    for override in overrides:
        key = override.lstrip("+~").partition("=")[0]
        if not any(key == free or key.startswith(f"{free}.") for free in FREE):
            if override not in before:
                raise UsageError(
                    f"{override} cannot change in a resumed run, which goes on with its own config; only "
                    f"{', '.join(FREE[1:])} can: start a new run, or leave it out"
                )
        elif key != "resume":
            # The settings are resolved, so that the corpus has a path of its own.
            for place in (key, key.replace("data.", "data.corpus.")):
                OmegaConf.update(saved, place, OmegaConf.select(config, key), merge=False)
    epochs, planned = saved.trainer.max_epochs, opened.config["trainer"]["max_epochs"]
    if isinstance(epochs, int) and epochs < planned:
        raise UsageError(f"trainer.max_epochs={epochs} cannot become less than the run's {planned}: it may only grow")
    settings: Any = OmegaConf.to_container(saved, resolve=True)
    return Stopped(path, folder_of(path), settings, opened.corpus, opened.run)


def escape(value: Any) -> Any:
    """`value` with every ``${`` made plain text for OmegaConf: what a checkpoint holds is resolved already."""
    if isinstance(value, dict):
        return {key: escape(part) for key, part in value.items()}
    if isinstance(value, list):
        return [escape(part) for part in value]
    if isinstance(value, str):
        return re.sub(r"(\\*)\$\{", lambda found: 2 * found[1] + r"\${", value)
    return value
