"""From a composed Hydra config to objects, with mistakes as one sentence each."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from hydra import compose
from hydra.core.hydra_config import HydraConfig
from hydra.errors import InstantiationException
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from charlm.checkpoint import defined
from charlm.corpus import Corpus, Unavailable
from charlm.errors import UsageError
from charlm.files import replace

FALLBACK = "python_docs"
# A config may come with a checkpoint from anywhere, so it makes nothing but what these modules define.
TRUSTED = (
    "charlm.callbacks",
    "charlm.corpus",
    "charlm.loggers",
    "charlm.schedules",
)
# Of Lightning's callbacks, those that write nothing; others delete and overwrite the files that a config names.
CALLBACKS = [
    f"pytorch_lightning.callbacks.{name}"
    for name in ("EarlyStopping", "EMAWeightAveraging", "LearningRateMonitor", "WeightAveraging")
]
SECTIONS = {  # without which no run can be; those without keys may be null
    "data": ("name", "corpus", "split", "mode", "bptt", "batch_size"),
    "model": ("_target_",),
    "optimizer": ("_target_",),
    "schedule": ("interval", "scheduler", "steps_per_epoch"),
    "trainer": ("accelerator", "devices", "precision", "max_epochs", "gradient_clip_val", "gradient_clip_algorithm"),
    "logger": ("_target_",),
    "callbacks": (),
    "checkpoint": (),
    "objective": (),
    "parameter_groups": (),
}
TRUST = "CHARLM_TRUST"  # the environment variable with the user's own packages: no file can set it


def make(node: Any) -> Any:
    """Hydra's `instantiate`; what it cannot or may not make is a UsageError that names the field."""
    if node is None:
        return None
    if not isinstance(node, DictConfig):
        raise UsageError(f"{str(node)[:80]!r} stands in the config where there must be a section with a _target_")
    check_targets(plain(node))
    try:
        return instantiate(node, _convert_="all")  # plain lists: a ListConfig would end up in checkpoints
    except Exception as error:
        cause = error.__cause__ if isinstance(error, InstantiationException) else error
        if isinstance(cause, UsageError):
            raise cause from None
        raise UsageError(f"{node._get_full_key(None)}: {cause or error}") from None


def plain(config: DictConfig) -> dict[str, Any]:
    """The config as plain values."""
    settings: Any = OmegaConf.to_container(config, resolve=True)
    return settings


def check_sections(config: DictConfig) -> None:
    """Raise UsageError for a config that lacks what every run needs, or has something else in its place."""
    settings = plain(config)
    if not isinstance(settings, dict) or "seed" not in settings:
        raise UsageError("seed is missing in the config: give seed=NUMBER")
    for section, keys in SECTIONS.items():
        node = settings.get(section)
        if node is None and not keys:
            continue
        if not isinstance(node, dict):
            raise UsageError(f"{section}={str(node)[:80]} must be a section of the config: see conf/")
        if lacking := [key for key in keys if key not in node]:
            raise UsageError(f"{section}.{lacking[0]} is missing in the config: see conf/{section}/")


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
    if target in CALLBACKS or defined(target, [*TRUSTED, *own]) is not None:
        return True
    made = defined(target, ["torch.optim"])
    if made is None:
        return False
    return isinstance(made, type) and issubclass(made, Optimizer | LRScheduler)


def make_corpus(config: DictConfig) -> Corpus:
    """The text that ``data.corpus`` describes."""
    corpus = make(config.data.corpus)
    if not isinstance(corpus, Corpus):
        raise UsageError("data.corpus is not a text: it needs a _target_ of charlm.corpus")
    return corpus


def load_corpus(config: DictConfig) -> tuple[Corpus, DictConfig, str]:
    """The corpus, the config that is really used, and a line to print if they were substituted.

    Only the default corpus of a plain ``train.py`` may be replaced, when it cannot be downloaded: never
    one that the user named, nor that of a recipe (``experiment=``).
    """
    try:
        return make_corpus(config), config, ""
    except Unavailable as error:
        hydra = HydraConfig.get()
        named = any(override.split("=")[0] == "data" for override in hydra.overrides.task)
        if named or hydra.runtime.choices.get("experiment"):
            raise
        line = (
            f"NO {config.data.name.upper()}: {error}. TRAINING ON {FALLBACK.upper()} INSTEAD, "
            f"the reference text that came with your Python."
        )
    config = compose(hydra.job.config_name, [*hydra.overrides.task, f"data={FALLBACK}"])
    return make_corpus(config), config, line


def save_config(config: DictConfig, folder: Path, overrides: list[str], *, new: bool) -> None:
    """Keep what was composed where Hydra keeps it: ``.hydra/`` in the run folder. Of a resumed run, the config only."""
    files: dict[str, Any] = {"config": config}
    if new:
        files |= {"overrides": overrides, "hydra": OmegaConf.create({"hydra": HydraConfig.get()})}
    for name, content in files.items():
        replace(folder / f".hydra/{name}.yaml", OmegaConf.to_yaml(content).encode())
