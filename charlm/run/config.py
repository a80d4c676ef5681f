"""From a composed Hydra config to plain settings and objects, with mistakes as one sentence each."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import hydra.utils
from hydra import compose
from hydra.core.hydra_config import HydraConfig
from hydra.errors import InstantiationException
from omegaconf import DictConfig, OmegaConf

from charlm.checkpoint.storage import replace_file
from charlm.errors import UsageError
from charlm.run.trust import check_targets
from charlm.text.corpus import Corpus
from charlm.text.download import Unavailable

FALLBACK = "python_docs"

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


def instantiate(node: Any) -> Any:
    """Hydra's `instantiate`; what it cannot or may not make is a UsageError that names the field."""
    if node is None:
        return None
    if not isinstance(node, DictConfig):
        raise UsageError(f"{str(node)[:80]!r} stands in the config where there must be a section with a _target_")
    check_targets(plain(node))
    try:
        return hydra.utils.instantiate(node, _convert_="all")  # plain lists: a ListConfig would end up in checkpoints
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


def build_corpus(config: DictConfig) -> Corpus:
    """The text that ``data.corpus`` describes."""
    corpus = instantiate(config.data.corpus)
    if not isinstance(corpus, Corpus):
        raise UsageError("data.corpus is not a text: it needs a _target_ of charlm.text.sources")
    return corpus


def load_corpus(config: DictConfig) -> tuple[Corpus, DictConfig, str]:
    """The corpus, the config that is really used, and a line to print if they were substituted.

    Only the default corpus of a plain ``train.py`` may be replaced, when it cannot be downloaded: never
    one that the user named, nor that of a recipe (``experiment=``).
    """
    try:
        return build_corpus(config), config, ""
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
    return build_corpus(config), config, line


def save_config(config: DictConfig, folder: Path, overrides: list[str], *, new: bool) -> None:
    """Keep what was composed where Hydra keeps it: ``.hydra/`` in the run folder. Of a resumed run, the config only."""
    files: dict[str, Any] = {"config": config}
    if new:
        files |= {"overrides": overrides, "hydra": OmegaConf.create({"hydra": HydraConfig.get()})}
    for name, content in files.items():
        replace_file(folder / f".hydra/{name}.yaml", OmegaConf.to_yaml(content).encode())
