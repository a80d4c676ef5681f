"""The one door to Hydra: from overrides to plain, resolved settings and a `Job`."""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

import charlm
from charlm.checkpoint.paths import folder_of
from charlm.errors import UsageError

CONF = Path(charlm.__file__).parents[1] / "conf"
FALLBACK = "python_docs"
SECTIONS = {  # without which no run can be; those without keys may be null
    "data": ("name", "corpus", "split", "mode", "bptt", "batch_size"),
    "model": ("_target_",),
    "optimizer": ("_target_",),
    "schedule": ("interval", "scheduler"),
    "trainer": ("accelerator", "devices", "precision", "max_epochs", "gradient_clip_val", "gradient_clip_algorithm"),
    "logger": ("_target_",),
    "callbacks": (),
    "checkpoint": (),
    "objective": (),
    "parameter_groups": (),
}
TOP_LEVEL = (*SECTIONS, "seed", "resume")


@dataclass(frozen=True)
class Job:
    """What a run is besides its settings: where it goes and how it was asked for.

    `substitute` composes the settings with a corpus that needs no download, for a run whose corpus the user did not
    name (else None). `number` and `sweep` are those of a job in a multirun.
    """

    folder: Path
    overrides: list[str]
    model: str | None = None
    number: int | None = None
    sweep: str | None = None
    substitute: Callable[[], dict[str, Any]] | None = None
    hydra: dict[str, Any] | None = None  # Hydra's own config, for .hydra/hydra.yaml

    @property
    def given(self) -> set[str]:
        """The options that the user set, by their full names."""
        return {override.lstrip("+~").partition("=")[0] for override in self.overrides}


def job_from_hydra(config: DictConfig) -> tuple[dict[str, Any], Job]:
    """The settings and the job of the program that Hydra has started."""
    hydra = HydraConfig.get()
    overrides = list(hydra.overrides.task)
    multirun = hydra.mode == RunMode.MULTIRUN
    job = Job(
        folder=Path(hydra.runtime.output_dir),
        overrides=overrides,
        model=hydra.runtime.choices.get("model"),
        number=hydra.job.num if multirun else None,
        sweep=Path(hydra.sweep.dir).name if multirun else None,
        substitute=substitution(hydra.job.config_name, overrides, hydra.runtime.choices.get("experiment")),
        hydra={"hydra": OmegaConf.to_container(hydra)},
    )
    return plain(config), job


def compose_job(overrides: Sequence[str], folder: str | Path | None = None) -> tuple[dict[str, Any], Job]:
    """The settings and the job of a run that is started from Python, without Hydra's globals.

    `folder` is the run folder (None: a new one in ``runs/``). Raises UsageError for overrides that cannot be.
    """
    if not CONF.is_dir():
        raise UsageError(f"there is no {CONF}: install charlm from a clone with pip install -e .")
    given = list(overrides)
    with initialize_config_dir(str(CONF), version_base="1.3"):
        try:
            config = compose("train", given, return_hydra_config=True)
        except Exception as error:
            raise UsageError(explain(error) or str(error).strip().splitlines()[0]) from None
        choices = config.hydra.runtime.choices
        model, experiment = choices.get("model"), choices.get("experiment")
    OmegaConf.set_struct(config, False)
    config.pop("hydra")
    settings = plain(config)
    if settings["resume"] is not None:
        folder = folder_of(Path(str(settings["resume"])))
    elif folder is None:
        folder = Path("runs", f"{datetime.now():%Y-%m-%d_%H-%M-%S}_{model}_{settings['data']['name']}")
    return settings, Job(Path(folder), given, model, substitute=substitution("train", given, experiment))


def substitution(name: str | None, overrides: list[str], experiment: object) -> Callable[[], dict[str, Any]] | None:
    """What composes the settings again with the corpus that every Python has, where the user named no other."""
    if experiment or any(override.split("=")[0] == "data" for override in overrides):
        return None

    def again() -> dict[str, Any]:
        if GlobalHydra.instance().is_initialized():  # within train.py
            return plain(compose(name, [*overrides, f"data={FALLBACK}"]))
        return compose_job([*overrides, f"data={FALLBACK}"], Path())[0]

    return again


def plain(config: DictConfig) -> dict[str, Any]:
    """The config as plain values, resolved; its sections are checked."""
    settings: Any = OmegaConf.to_container(config, resolve=True)
    check_sections(settings)
    return settings


def check_sections(settings: Any) -> None:
    """Raise UsageError for settings that lack what every run needs, or have what nothing reads."""
    if not isinstance(settings, dict) or "seed" not in settings:
        raise UsageError("seed is missing in the config: give seed=NUMBER")
    for key in settings:
        if key not in TOP_LEVEL:
            raise UsageError(f"{key} is not an option{did_you_mean(str(key), TOP_LEVEL)}")
    for section, keys in SECTIONS.items():
        node = settings.get(section)
        if node is None and not keys:
            continue
        if not isinstance(node, dict):
            raise UsageError(f"{section}={str(node)[:80]} must be a section of the config: see conf/")
        if lacking := [key for key in keys if key not in node]:
            raise UsageError(f"{section}.{lacking[0]} is missing in the config: see conf/{section}/")


def explain(error: BaseException) -> str | None:
    """One sentence for an option that does not exist, in the place of Hydra's advice to append it; else None."""
    found = re.search(r"Could not override '([^']+)'", str(error))
    if not found:
        return None
    return f"{found[1]} is not an option{did_you_mean(found[1], option_names())}"


def option_names() -> list[str]:
    """The full name of every option of the default config."""
    GlobalHydra.instance().clear()
    with initialize_config_dir(str(CONF), version_base="1.3"):
        config = compose("train")
    return sorted(_names(OmegaConf.to_container(config), ""))


def _names(node: Any, prefix: str) -> Iterator[str]:
    for key, value in node.items():
        if isinstance(value, dict) and value:
            yield from _names(value, f"{prefix}{key}.")
        else:
            yield prefix + str(key)


def did_you_mean(name: str, options: Sequence[str]) -> str:
    """The end of a sentence about `name`: the nearest of `options`."""
    leaf = name.rpartition(".")[2]
    close = [option for option in options if option.rpartition(".")[2] == leaf]
    close = sorted(close, key=lambda option: option.count(".")) or difflib.get_close_matches(name, options, 1)
    if not close:
        leaves = {option.rpartition(".")[2]: option for option in options}
        close = [leaves[match] for match in difflib.get_close_matches(leaf, leaves, 1)]
    return f": did you mean {close[0]}?" if close else ": python train.py --help lists them"
