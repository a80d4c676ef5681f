"""From a composed Hydra config to objects, with mistakes as one sentence each."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from hydra import compose
from hydra.core.hydra_config import HydraConfig
from hydra.errors import InstantiationException
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf

from charlm.corpus import Corpus, Unavailable
from charlm.errors import UsageError

FALLBACK = "python_docs"


def make(node: Any) -> Any:
    """Hydra's `instantiate`; what it cannot make is a UsageError that names the field."""
    try:
        return instantiate(node, _convert_="all")  # plain lists: a ListConfig would end up in checkpoints
    except InstantiationException as error:
        cause = error.__cause__
        if isinstance(cause, UsageError):
            raise cause from None
        raise UsageError(f"{node._get_full_key(None)}: {cause or error}") from None


def load_corpus(config: DictConfig) -> tuple[Corpus, DictConfig, str]:
    """The corpus, the config that is really used, and a line to print if they were substituted.

    Only the default corpus of a plain ``train.py`` may be replaced, when it cannot be downloaded: never
    one that the user named, nor that of a recipe (``experiment=``).
    """
    try:
        return make(config.data.corpus), config, ""
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
    return make(config.data.corpus), config, line


def save_config(config: DictConfig, folder: Path, overrides: list[str], *, new: bool) -> None:
    """Keep what was composed where Hydra keeps it: ``.hydra/`` in the run folder. Of a resumed run, the config only."""
    OmegaConf.save(config, folder / ".hydra/config.yaml")
    if new:
        OmegaConf.save(overrides, folder / ".hydra/overrides.yaml")
        OmegaConf.save(OmegaConf.create({"hydra": HydraConfig.get()}), folder / ".hydra/hydra.yaml")
