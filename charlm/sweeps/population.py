"""Population based training (Jaderberg et al. 2017, arXiv:1711.09846) for ``search.pruner=population``.

After each epoch, a trial among the worst quarter takes over all that one of the best quarter has learnt: its weights,
the state of its optimiser, its place in the text. It goes on from there with some settings changed.
"""

from __future__ import annotations

import io
import random
import shutil
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from omegaconf import OmegaConf
from ray.tune.schedulers import PopulationBasedTraining

from charlm.checkpoint.format import KEY
from charlm.checkpoint.paths import model_name
from charlm.checkpoint.safe_loading import read_safely
from charlm.checkpoint.storage import replace_file
from charlm.run.compose import compose_job
from charlm.run.instantiate import escape
from charlm.run.search_options import Range, SearchOptions, Space, changeable, number
from charlm.run.settings import Settings
from charlm.sweeps.folder import JobRecord, SweepFolder
from charlm.sweeps.results import settings_of
from charlm.sweeps.space import problem, with_settings
from charlm.training.parameter_groups import ParameterGroups

RESAMPLED = 0.25  # how often a setting is drawn anew (the paper's appendix A)
FACTORS = (0.8, 1.2)  # else it is multiplied by one of these
# The learning rates that PyTorch keeps, in a group of parameters and in a scheduler.
RATES = {"initial_lr", "max_lr", "min_lr"}
RATES_OF_A_SCHEDULER = {"base_lrs", "max_lrs", "_last_lr"}


def scheduler(options: SearchOptions, base: list[str]) -> PopulationBasedTraining:
    """Ray Tune's scheduler, which decides which trial takes over which. All trials have the overrides `base`."""
    rng, space = random.Random(options.seed), options.parameters()

    def explore(config: dict[str, Any]) -> dict[str, Any]:
        trial = config["trial"]
        changed = explored(trial["settings"], space, rng)
        possible = problem(with_settings(base, changed)) is None
        return {"trial": {**trial, "settings": changed if possible else trial["settings"]}}

    return PopulationBasedTraining(
        time_attr="epoch",
        perturbation_interval=1,
        burn_in_period=options.warmup + 1,
        custom_explore_fn=explore,
        log_config=False,
        require_attrs=False,
    )


def explored(settings: dict[str, str], space: Space, rng: random.Random) -> dict[str, str]:
    """`settings` with those changed that can change while a trial trains; within their `space`."""
    found = dict(settings)
    for name, values in space.items():
        if not changeable(name):
            continue
        anew = rng.random() < RESAMPLED
        if isinstance(values, list):
            at = values.index(settings[name])
            neighbours = values[max(at - 1, 0) : at] + values[at + 1 : at + 2]
            found[name] = rng.choice(values if anew else neighbours)
        else:
            found[name] = number(values, drawn(values, rng) if anew else moved(values, float(settings[name]), rng))
    return found


def drawn(values: Range, rng: random.Random) -> float:
    """Any number in the range."""
    share = rng.random()
    if values.log:
        return on_a_step(values, values.low * (values.high / values.low) ** share)
    return on_a_step(values, values.low + (values.high - values.low) * share)


def moved(values: Range, value: float, rng: random.Random) -> float:
    """A number near `value`, the next step at least, if the range has one."""
    factor = rng.choice(FACTORS)
    step = values.step or (1 if values.whole else 0)
    least = value + step if factor > 1 else value - step
    return on_a_step(values, max(least, value * factor) if factor > 1 else min(least, value * factor))


def on_a_step(values: Range, value: float) -> float:
    """The number in the range that is nearest to `value`."""
    step = values.step or (1 if values.whole else None)
    if step is not None:
        value = values.low + round((value - values.low) / step) * step
    return min(max(value, values.low), values.high)


def take_over(search: SweepFolder, record: JobRecord, source: Path, base: list[str], settings: dict[str, str]) -> None:
    """Replace the checkpoints of the trial of `record` by those in `source`, with other `settings` from there on.

    All at once, even if it is killed: see `finish_take_over`.
    """
    overrides = with_settings(base, settings)
    print(f"\ngoes on from trial {source.parent.name} with {' '.join(overrides[len(base) :])}\n")
    last, buffer = read_safely(source / "last.ckpt"), io.BytesIO()
    change(last, compose_job(overrides, Path())[0], overrides, list(settings))
    torch.save(last, buffer)
    new, old = replacements(search, record)
    for folder in (new, old):
        shutil.rmtree(folder, ignore_errors=True)
    new.mkdir(parents=True)
    for path in source.glob("*.ckpt"):
        replace_file(new / path.name, buffer.getvalue() if path.name == "last.ckpt" else path.read_bytes())
    with suppress(FileNotFoundError):  # it has none if it has never run
        new.with_name("checkpoints").rename(old)
    finish_take_over(search, record)


def finish_take_over(search: SweepFolder, record: JobRecord) -> None:
    """Put the new checkpoints in their place if `take_over` was killed, and have the `record` say what they do."""
    new, old = replacements(search, record)
    target = new.with_name("checkpoints")
    if new.exists() and not target.exists():
        new.rename(target)
    for folder in (new, old):
        shutil.rmtree(folder, ignore_errors=True)
    if (target / "last.ckpt").exists():
        overrides = read_safely(target / "last.ckpt")[KEY]["run"]["overrides"]
        record.overrides = list(overrides)
        record.model = model_name(settings_of(overrides).get("model", record.model), overrides)
        search.write(record)


def replacements(search: SweepFolder, record: JobRecord) -> tuple[Path, Path]:
    """The folders in which the new checkpoints of a trial are made, and the old ones are kept meanwhile."""
    run = search.path / record.folder
    return run / "checkpoints.new", run / "checkpoints.old"


def change(content: dict[str, Any], settings: Settings, overrides: list[str], names: list[str]) -> None:
    """Have the run in a checkpoint go on with the values that `settings` have for those of `names` that can change."""
    entry = content[KEY]
    new, config = OmegaConf.create(escape(settings.model_dump())), OmegaConf.create(escape(entry["config"]))
    for name in filter(changeable, names):
        old, value = OmegaConf.select(config, name), OmegaConf.select(new, name)
        OmegaConf.update(config, name, value, force_add=True)
        if name.startswith("optimizer.") and value != old:
            change_optimizer(content, name.removeprefix("optimizer."), old, value, settings.parameter_groups)
    entry["config"] = OmegaConf.to_container(config, resolve=True)
    entry["model"] = entry["config"]["model"]
    entry["run"]["overrides"] = overrides


def change_optimizer(content: dict[str, Any], name: str, old: Any, new: Any, options: ParameterGroups) -> None:
    """Set an option of the optimiser in a checkpoint, but for parts of the network that have their own.

    A learning rate is scaled, with what the scheduler remembers of it: it goes on along the curve of the `new` one.
    """
    (optimizer,) = content["optimizer_states"]
    schedulers = [part for state in content["lr_schedulers"] for part in (state, *state.get("_schedulers", []))]
    lowest = next((state["eta_min"] for state in schedulers if "eta_min" in state), 0.0)
    for at, group in enumerate(optimizer["param_groups"]):
        if getattr(getattr(options, group.get("name", "rest"), None), name, None) is not None:
            continue
        if name != "lr":
            group[name] = list(new) if OmegaConf.is_list(new) else new
            continue
        group["lr"] = scaled(group["lr"], old, new, lowest)
        for key in RATES & group.keys():
            group[key] = scaled(group[key], old, new)
        for state in schedulers:
            for key in RATES_OF_A_SCHEDULER & state.keys():
                state[key][at] = scaled(state[key][at], old, new)


def scaled(rate: float, old: float, new: float, lowest: float = 0.0) -> float:
    """What `rate` is on the same curve from `new` instead of `old` to `lowest`."""
    return new if old == lowest else lowest + (rate - lowest) * (new - lowest) / (old - lowest)
