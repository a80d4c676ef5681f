"""From a plan to what it trains: the data and the model, with every setting filled in that was left open."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import pytorch_lightning as pl

from charlm.data.module import CharDataModule
from charlm.run.build import (
    build_checked_network,
    build_data,
    build_model,
    fill_in_lengths,
    steps_per_epoch,
    with_chosen_sizes,
)
from charlm.run.init_from import adopt
from charlm.run.resume import Plan
from charlm.run.settings import Settings
from charlm.run.threads import choose_threads
from charlm.training.callbacks.terminal import describe
from charlm.training.module import CharLM


@dataclass(frozen=True)
class Built:
    """What training needs. `origin` says where the corpus is from, `header` what the terminal shows."""

    settings: Settings
    epochs: int
    data: CharDataModule
    model: CharLM
    origin: dict[str, Any]
    header: dict[str, str]


def build(plan: Plan) -> Built:
    """Build what `plan` describes, and tell PyTorch the number of threads."""
    settings, corpus, header = plan.settings, plan.corpus, dict(plan.header)
    pl.seed_everything(settings.seed, verbose=False)
    data = build_data(settings.data, corpus, settings.seed)
    settings, chosen = with_chosen_sizes(settings, data)
    epochs = settings.trainer.max_epochs
    assert isinstance(epochs, int)
    trust = None if plan.checkpoint is None else ()  # what the user typed is trusted, what a file says is not
    network = build_checked_network(settings.model, data, trust)
    if plan.start is not None:
        header["start"] = f"{settings.init_from}: {adopt(network, data.vocab, plan.start, trust)}"
    steps = steps_per_epoch(settings.trainer, len(data.train_dataloader()))
    changed = {
        "schedule": fill_in_lengths(settings.schedule, epochs, steps),
        "trainer": choose_threads(settings.trainer, network, data),
    }
    settings = settings.model_copy(update=changed)
    planned = settings.schedule.scheduler or {}
    limit = settings.trainer.max_steps or math.inf
    if settings.task == "train" and plan.checkpoint is None and limit < epochs * steps and "epochs" in planned:
        data.notices.append(
            f"trainer.max_steps={limit} ends this run early: the scheduler is planned for the {epochs * steps:,} steps "
            f"of trainer.max_epochs={epochs}"
        )
    origin = {"name": settings.data.name, "source": corpus.source, "sha256": corpus.sha256}
    model = build_model(settings, network, data, origin, plan.record)
    header |= describe(settings.data.name, data, network, plan.folder)
    if chosen:
        header["chosen"] = chosen
    return Built(settings, epochs, data, model, origin, header)
