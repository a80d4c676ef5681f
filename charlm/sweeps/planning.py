"""Which jobs a sweep has, checked before the first one runs."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from hydra import compose
from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import DictConfig, OmegaConf

from charlm.cli import quick_imports
from charlm.errors import UsageError
from charlm.sweeps import results


def jobs(config: DictConfig) -> list[list[str]]:
    """The overrides of every job, as Hydra's own sweeper makes them; none for another sweeper, which decides later."""
    if not str(config.hydra.sweeper._target_).endswith(".BasicSweeper"):
        return []
    arguments = [f"{name}={value}" for name, value in (config.hydra.sweeper.params or {}).items()]
    typed: Any = OmegaConf.to_container(config.hydra.overrides.task, resolve=False)
    parser = OverridesParser.create(config_loader=GlobalHydra.instance().config_loader())
    (batch,) = BasicSweeper.split_arguments(parser.parse_overrides([*arguments, *typed]), None)
    return batch


def check_jobs(name: str, search: list[str], jobs: list[list[str]]) -> None:
    """Raise UsageError if the settings of a job are invalid: at once, not after the jobs before it."""
    with quick_imports():  # PyTorch is slow to load
        from charlm.run.compose import Job, checked_settings
        from charlm.run.together import check_processes

    for number, overrides in enumerate(jobs):
        try:
            settings = checked_settings(compose(name, [*search, *overrides]))
            check_processes(settings.trainer, Job(Path(), overrides, number=number))
        except UsageError as error:
            differing = results.differing([results.settings_of(job) for job in jobs])
            described = results.described(overrides, differing)
            raise UsageError(f"job {number} of {len(jobs)} ({described}): {error}") from None
        if settings.task == "search":
            raise UsageError("task=search makes its own runs: leave out -m")


def jobs_at_once(launcher: Mapping[str, Any], count: int) -> int:
    """How many of `count` jobs the launcher runs at once on this machine. Raises UsageError for none."""
    from charlm.run.compose import cores

    name, each = kind(launcher), cores_each(launcher) or 1
    if name in ("LocalLauncher", "RayLauncher"):
        return max(1, min(int(cores() // each), count or cores()))
    if name != "JoblibLauncher":
        return 1
    asked = launcher.get("n_jobs")
    if asked == 0:
        raise UsageError("hydra.launcher.n_jobs=0 runs nothing: give the number of jobs at once, or -1 for all cores")
    at_once = 1 if asked is None else int(asked) if asked > 0 else cores() + 1 + int(asked)
    return max(1, min(at_once, count or at_once))


def check_launcher(launcher: Mapping[str, Any]) -> None:
    """Raise UsageError for what the launcher would refuse for every job."""
    if kind(launcher) == "SlurmLauncher" and shutil.which("srun") is None:
        raise UsageError(
            "hydra/launcher=submitit_slurm needs a cluster, and there is no srun here: start it where srun is, or use "
            "hydra/launcher=submitit_local"
        )
    if kind(launcher) == "LocalLauncher" and launcher["nodes"] != 1:
        raise UsageError(f"hydra.launcher.nodes={launcher['nodes']}: this machine is one, leave it out")
    if (each := cores_each(launcher)) is not None and each <= 0:
        name = "ray.remote.num_cpus" if kind(launcher) == "RayLauncher" else "cpus_per_task"
        raise UsageError(f"hydra.launcher.{name}={each:g} runs nothing: give the number of cores for each job")


def threads_each(launcher: Mapping[str, Any], at_once: int) -> int | None:
    """The threads for each of so many jobs `at_once`; None for as many as there are cores."""
    from charlm.run.compose import cores

    if (each := cores_each(launcher)) is not None:
        return max(1, int(each))
    return None if at_once == 1 else max(1, cores() // at_once)


def cores_each(launcher: Mapping[str, Any]) -> float | None:
    """The cores that the launcher reserves for each job, if it does."""
    if kind(launcher) == "RayLauncher":
        return float(launcher["ray"]["remote"].get("num_cpus", 1))  # Ray's own default
    return launcher.get("cpus_per_task")


def kind(launcher: Mapping[str, Any]) -> str:
    """The name of the launcher's class."""
    return str(launcher["_target_"]).rpartition(".")[2]
