"""From Hydra's overrides to `Settings` and a `Job`."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.initialize import get_gh_backup, restore_gh_from_backup
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from charlm.checkpoint.paths import folder_of, made, model_name, run_name, top_folder
from charlm.errors import UsageError, first_line
from charlm.run.settings import Settings, check_settings
from charlm.run.suggest import CONF, explain, option_of, readable

FALLBACK = "python_docs"  # the corpus that needs no download


@dataclass(frozen=True)
class Job:
    """What defines a run besides its settings: its folder and how it was started.

    `number` and `sweep`, a folder, identify a job of a multirun, of which so many as `parallel` run at once on this
    machine. `report` is told how far the run is, and `stopping` is asked whether it shall stop; `signals` says whether
    the run itself handles them. A search's `hopeless` is told the number and the loss of each validation, and says
    whether the run shall end; `between` is told the number and the loss of each epoch once another one begins, after
    ``last.ckpt`` was written. `substitute` composes the settings with a corpus that needs no download; it is None if
    the user or an experiment names the corpus.
    """

    folder: Path
    overrides: list[str]
    model: str | None = None
    number: int | None = None
    sweep: Path | None = None
    parallel: int = 1
    report: Callable[[dict[str, Any]], None] | None = None
    stopping: Callable[[], bool] = lambda: False
    signals: bool = True
    hopeless: Callable[[int, float], bool] | None = None
    between: Callable[[int, float], None] | None = None
    substitute: Callable[[], Settings] | None = None
    hydra: dict[str, Any] | None = None  # Hydra's own config, for .hydra/hydra.yaml

    @property
    def given(self) -> set[str]:
        """The options that the user set, by their full names."""
        return set(map(option_of, self.overrides))


def job_from_hydra(config: DictConfig) -> tuple[Settings, Job]:
    """The settings and the job of a program that Hydra has started."""
    hydra = HydraConfig.get()
    overrides = OmegaConf.to_container(hydra.overrides.task, resolve=False)
    assert isinstance(overrides, list)
    multirun = hydra.mode == RunMode.MULTIRUN
    job = Job(
        folder=Path(hydra.runtime.output_dir),
        overrides=overrides,
        model=model_name(hydra.runtime.choices.get("model"), overrides),
        number=hydra.job.num if multirun else None,
        sweep=Path(hydra.sweep.dir) if multirun else None,
        substitute=substitution(hydra.job.config_name, overrides, hydra.runtime.choices.get("experiment")),
        hydra={"hydra": OmegaConf.to_container(hydra)},
    )
    return checked_settings(config), job


def cores() -> int:
    """The number of CPU cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def with_own_threads(settings: Settings, job: Job, threads: int | None) -> Settings:
    """`settings` with the threads of a `job` that shares its machine, unless the user has chosen; None: as they are.

    What ``auto`` measures beside other jobs is left to chance, and as many threads as there are cores for each of them
    slow all down many times.
    """
    if threads is None or isinstance(settings.trainer.threads, int) or "trainer.threads" in job.given:
        return settings
    trainer = settings.trainer.model_copy(update={"threads": threads})
    return settings.model_copy(update={"trainer": trainer})


def compose_job(overrides: Sequence[str], folder: str | Path | None = None) -> tuple[Settings, Job]:
    """The settings and the job of a run that is started from Python, without Hydra's global state.

    `folder` is the run folder (None: a new one in ``runs/``). Raises UsageError for invalid overrides.
    """
    if not CONF.is_dir():
        raise UsageError(f"there is no {CONF}: install charlm from a clone with pip install -e .")
    if not all(isinstance(override, str) for override in overrides):
        raise UsageError('overrides are given one by one, as in charlm.train("model=gru", "optimizer.lr=3e-3")')
    if flags := [override for override in overrides if override.startswith("-")]:
        raise UsageError(f"{flags[0]} is for the command line: in Python, give overrides such as 'model=gru' only")
    given = readable(overrides, python=True)
    if hydra := [override for override in given if override.lstrip("+~").startswith("hydra.run.")]:
        raise UsageError(f"{hydra[0]} has no effect in Python: give folder=")
    with fresh_hydra(), initialize_config_dir(str(CONF), version_base="1.3"):
        try:
            config = compose("train", given, return_hydra_config=True)
        except Exception as error:
            raise UsageError(explain(error, python=True) or " ".join(str(error).split())) from None
        choices = config.hydra.runtime.choices
        model, experiment = model_name(choices.get("model"), given), choices.get("experiment")
    OmegaConf.set_struct(config, False)
    config.pop("hydra")
    settings = checked_settings(config)
    if settings.resume is not None:
        own = folder_of(Path(settings.resume))
        if folder is not None and Path(folder).resolve() != own.resolve():
            raise UsageError("a resumed run stays in its own folder: leave out folder=")
        folder = own
    elif folder is None:
        name = run_name(settings.task, settings.init_from, model)
        folder = made(f"{top_folder(settings.task)}/{datetime.now():%Y-%m-%d_%H-%M-%S}_{name}_{settings.data.name}")
    return settings, Job(Path(folder), given, model, substitute=substitution("train", given, experiment))


@contextmanager
def fresh_hydra() -> Iterator[None]:
    """Set aside Hydra's global state, which train.py has and a search in it needs afresh for every trial."""
    before = get_gh_backup()
    GlobalHydra.instance().clear()
    try:
        yield
    finally:
        restore_gh_from_backup(before)


def substitution(name: str | None, overrides: list[str], experiment: object) -> Callable[[], Settings] | None:
    """A function that composes the settings with the fallback corpus; None if a corpus was named."""
    if experiment or any(override.split("=")[0] == "data" for override in overrides):
        return None

    def again() -> Settings:
        if GlobalHydra.instance().is_initialized():  # within train.py
            return checked_settings(compose(name, [*overrides, f"data={FALLBACK}"]))
        return compose_job([*overrides, f"data={FALLBACK}"], Path())[0]

    return again


def checked_settings(config: DictConfig) -> Settings:
    """The composed config, resolved and checked."""
    try:
        values = OmegaConf.to_container(config, resolve=True)
    except OmegaConfBaseException as error:  # an interpolation that leads nowhere
        raise UsageError(explain(error) or f"the config cannot be resolved: {first_line(error)}") from None
    return check_settings(values)
