"""The settings of a run: the composed config, checked.

Sections that describe an object by ``_target_`` and its arguments are plain dicts; the object's own constructor
declares and checks these options.
"""

from __future__ import annotations

import difflib
import inspect
import re
from typing import Annotated, Any, Literal

import pytorch_lightning as pl
from pydantic import AfterValidator, BeforeValidator, ConfigDict, Field, model_validator

from charlm.data.options import DataOptions, Size
from charlm.errors import OptionError
from charlm.options import Count, NonNegative, Options, PositiveInt, Seed, Text
from charlm.run.search_options import SearchOptions
from charlm.run.suggest import CONF, did_you_mean
from charlm.training.callbacks.checkpoints import CheckpointOptions
from charlm.training.objective import Objective
from charlm.training.parameter_groups import ParameterGroups
from charlm.training.profile import ProfileOptions
from charlm.training.range_test import RangeOptions


def _has_target(section: dict[str, Any]) -> dict[str, Any]:
    if "_target_" not in section:
        raise OptionError("_target_", "is missing: it names the class, see conf/")
    return section


Target = Annotated[dict[str, Any], AfterValidator(_has_target)]


class OptimizerOptions(Options):
    """What is checked of an optimiser's arguments; the class takes more."""

    model_config = ConfigDict(extra="allow")

    lr: NonNegative | None = None
    """Learning rate."""
    weight_decay: NonNegative = 0.0
    """Weight decay: an L2 gradient, or decoupled in AdamW."""
    momentum: NonNegative = 0.0
    """Share of the last update that the next one keeps."""
    fused: bool | None = None
    """One kernel for the whole update, on the CPU too."""


def _valid_optimizer(section: dict[str, Any]) -> dict[str, Any]:
    OptimizerOptions(**section)
    return section


class ScheduleOptions(Options):
    """How the learning rate changes during training."""

    interval: Literal["epoch", "step"] = "epoch"
    """How often the scheduler steps."""
    scheduler: Target | None = None
    """The scheduler (``_target_`` and its arguments); null keeps the learning rate constant."""


SET_BY_US = {  # arguments of Lightning's Trainer that are no options
    "callbacks",
    "default_root_dir",
    "enable_model_summary",
    "enable_progress_bar",
    "logger",
    "num_sanity_val_steps",
    "plugins",
}


def _duration(value: object) -> object:
    if value is not None and not (isinstance(value, str) and re.fullmatch(r"\d+:\d\d:\d\d:\d\d", value)):
        raise OptionError("", "must be DAYS:HOURS:MINUTES:SECONDS, as in 00:08:00:00", value)
    return value


Limit = Count | Annotated[float, Field(ge=0, le=1)] | None  # a number of batches, or a fraction of them


class TrainerOptions(Options):
    """Arguments of Lightning's Trainer. Any other one can be added with ``+trainer.NAME=VALUE``."""

    model_config = ConfigDict(extra="allow")

    accelerator: str = "auto"
    """Where to train, such as cpu or cuda; auto is a CUDA GPU if there is one, else the CPU."""
    strategy: Literal["auto", "ddp", "ddp_find_unused_parameters_true"] = "auto"
    """How several processes train together: Lightning's ddp, or the last for a model with unused parameters."""
    devices: PositiveInt | list[Count] = 1
    """GPUs or, on the CPU, processes that train together on a machine; or a list of GPUs, such as [0] or [0, 2]."""
    num_nodes: PositiveInt = 1
    """Machines that train together, started with torchrun."""
    precision: str | int = "32-true"
    """Precision of weights and arithmetic, such as 32-true, 64-true, bf16-mixed, bf16-true or 16-mixed."""
    threads: Annotated[int, Field(ge=1, le=1024)] | Literal["auto"] | None = None
    """CPU threads; auto measures for about half a second which number is fastest; null: as many as PyTorch takes."""
    max_epochs: Size = 9
    """Epochs to train; auto is 9, or for your own text by its size (charlm/data/sizes.py)."""
    min_epochs: PositiveInt | None = None
    """Epochs to train at least, whatever a callback such as EarlyStopping says."""
    max_steps: PositiveInt | None = None
    """Optimiser steps after which training ends; the scheduler is still planned for max_epochs. null: no limit."""
    max_time: Annotated[str | None, BeforeValidator(_duration)] = None
    """Time after which training ends, as DAYS:HOURS:MINUTES:SECONDS; null: no limit."""
    gradient_clip_val: NonNegative | None = None
    """Largest norm of the gradient, or of each of its numbers for value clipping; null: no clipping."""
    gradient_clip_algorithm: Literal["norm", "value"] = "norm"
    """What is clipped: the norm of the whole gradient, or each of its numbers."""
    accumulate_grad_batches: PositiveInt = 1
    """Batches per optimiser step."""
    limit_train_batches: Limit = None
    """Training batches per epoch: a number, or a fraction of them; null: all."""
    limit_val_batches: Limit = None
    """Validation batches: a number, or a fraction of them; null: all, 0: no validation."""
    limit_test_batches: Limit = None
    """Test batches: a number, or a fraction of them; null: all."""
    check_val_every_n_epoch: PositiveInt | None = None
    """Epochs from one validation to the next; null: 1."""
    val_check_interval: PositiveInt | Annotated[float, Field(gt=0, le=1)] | None = None
    """Batches from one validation to the next within an epoch, or a fraction of the epoch; null: at its end."""
    overfit_batches: int | float = 0
    """Train and validate on so many training batches only (or a fraction of them); 0: off."""
    log_every_n_steps: Count = 100
    """Steps between two lines in the logger."""
    deterministic: bool | Literal["warn"] | None = None
    """Use only deterministic algorithms, on a GPU too; warn: warn where there is none."""
    benchmark: bool | None = None
    """Let cuDNN measure which of its algorithms is fastest."""
    detect_anomaly: bool = False
    """Name the operation in which a NaN first appears in the backward pass; much slower."""
    fast_dev_run: bool | PositiveInt = False
    """Run so many batches of training, validation and test (true: 1) to see whether everything works."""
    profiler: str | None = None
    """Lightning's profiler: simple, advanced or pytorch; null: none. See task=profile for PyTorch's own."""

    @property
    def processes(self) -> int:
        """The number of processes on each machine."""
        return self.devices if isinstance(self.devices, int) else len(self.devices)

    @property
    def world(self) -> int:
        """The number of processes on all machines."""
        return self.processes * self.num_nodes

    def alone(self) -> TrainerOptions:
        """The options of the first of several processes for what it does alone."""
        devices = 1 if isinstance(self.devices, int) else self.devices[:1]
        return self.model_copy(update={"strategy": "auto", "devices": devices, "num_nodes": 1})

    @model_validator(mode="after")
    def _fit_together(self) -> TrainerOptions:
        if isinstance(self.devices, list) and not 0 < len(set(self.devices)) == len(self.devices):
            raise OptionError("devices", "must name each device once, as in [0] or [0, 2]", self.devices)
        for name in self.model_extra or {}:
            taken = inspect.signature(pl.Trainer).parameters.keys() - SET_BY_US
            if name not in taken:
                close = difflib.get_close_matches(name, taken, 1)
                more = f": did you mean trainer.{close[0]}?" if close else ""
                raise OptionError(name, f"is not an option{more}")
        if self.gradient_clip_algorithm == "value" and self.gradient_clip_val is None:
            raise OptionError("gradient_clip_algorithm=value", "clips nothing without trainer.gradient_clip_val")
        return self


class Settings(Options):
    """Everything that a run is made from."""

    seed: Seed
    """Seed of weights, dropout, shuffling, jitter and random splits."""
    task: Literal["train", "lr_find", "profile", "search"] = "train"
    """Train; or find a learning rate by a range test; show where the time goes; search for the best settings."""
    resume: Text | None = None
    """A run folder, or a .ckpt file in its checkpoints: resume that run, in its folder and with its own settings."""
    init_from: Text | None = None
    """A run folder or .ckpt file: start from that model's weights, on another text; its model options are used."""
    data: DataOptions
    model: Target
    """The network: ``_target_`` names its class, the rest are its options."""
    optimizer: Annotated[Target, AfterValidator(_valid_optimizer)]
    """The optimiser: ``_target_`` names its class, the rest are its arguments."""
    schedule: ScheduleOptions
    trainer: TrainerOptions
    logger: Target
    """Where figures go besides the run folder's own files."""
    callbacks: dict[str, dict[str, Any] | None] = Field(default_factory=dict)
    """Callbacks by name, each with a ``_target_`` and its arguments; null leaves one out."""
    checkpoint: CheckpointOptions = CheckpointOptions()
    objective: Objective = Objective()
    parameter_groups: ParameterGroups = ParameterGroups()
    lr_find: RangeOptions = RangeOptions()
    profile: ProfileOptions = ProfileOptions()
    search: SearchOptions = SearchOptions()

    @model_validator(mode="after")
    def _path_is_read(self) -> Settings:
        for name, choice in {"path": "text", "paths": "mix"}.items():
            value, read = getattr(self.data, name), map(str, self.data.corpus.values())
            if value and str(value) not in read and self.resume is None:
                raise OptionError(f"data.{name}", f"is not read by this corpus: it needs data={choice}", value)
        return self

    @model_validator(mode="after")
    def _new_run(self) -> Settings:
        if self.resume is not None and self.init_from is not None:
            raise OptionError("init_from", "starts a new run, and resume continues one: give only one of them")
        if self.resume is not None and self.task != "train":
            raise OptionError("task", "looks at a new run: leave out resume", self.task)
        if self.trainer.world > 1 and self.task != "train":
            does = "trains each trial" if self.task == "search" else "looks at a run"
            raise OptionError(
                "task", f"{does} in one process: leave out trainer=ddp, or set trainer.devices=1", self.task
            )
        return self

    @model_validator(mode="before")
    @classmethod
    def _without_null(cls, sections: Any) -> Any:
        """A section that is null has its default values."""
        if not isinstance(sections, dict):
            return sections
        return {name: section for name, section in sections.items() if section is not None}


def check_settings(values: Any) -> Settings:
    """The settings in `values`. Raises OptionError, with the nearest name for an option that does not exist."""
    if not isinstance(values, dict) or not all(isinstance(name, str) for name in values):
        raise OptionError("", "the config must be a section of options")
    try:
        return Settings(**values)
    except TypeError:  # a section whose keys are not text
        raise OptionError("", "the names of options must be text") from None
    except OptionError as error:
        section = error.name.partition(".")[0]
        more = {
            "is not an option": did_you_mean(error.name),
            "is missing": f" in the config: see conf/{section if (CONF / section).is_dir() else 'train.yaml'}",
        }.get(error.problem, "")
        raise OptionError(error.name, error.problem + more, error.value) from None
