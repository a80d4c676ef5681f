"""The format of a checkpoint: a Lightning checkpoint with one more entry, ``"charlm"``.

The entry contains the model's specification, the vocabulary, the text normalisation, the settings and the corpus
checksum as plain values, so that the file alone is enough to sample from.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from charlm.models.network import Network
from charlm.text.vocab import Vocab

KEY = "charlm"

TRAINING = "charlm_training"  # carried state, running means and random states, for resuming

PROGRESS = "charlm_progress"  # the epoch and loss of the weights, for `LanguageModel`

FORMAT = 2

FIELDS = ("model", "vocab", "normalisation", "config", "corpus", "run")

PREFIX = "network."  # where CharLM keeps the network's weights


def pack(
    model: Mapping[str, Any],
    vocab: Vocab,
    normalisation: Mapping[str, Any],
    config: Mapping[str, Any],
    corpus: Mapping[str, Any],
    run: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """The entry that makes a checkpoint self-contained. All values must be plain.

    `run` is what ``train.py`` needs for resuming besides the config.
    """
    return {
        "format": FORMAT,
        "model": dict(model),
        "vocab": vocab.to_dict(),
        "normalisation": dict(normalisation),
        "config": dict(config),
        "corpus": dict(corpus),
        "run": dict(run or {}),
    }


@dataclass(frozen=True)
class Checkpoint:
    """The content of a checkpoint. `network`, built from `model`, is in evaluation mode, on the CPU."""

    network: Network
    model: dict[str, Any]
    vocab: Vocab
    normalisation: dict[str, Any]
    config: dict[str, Any]
    corpus: dict[str, Any]
    run: dict[str, Any]
    progress: dict[str, float]


def read_progress(values: object) -> dict[str, float]:
    """What a file says about its progress: ``epoch`` (from 1) and ``val_nats`` or ``train_nats``.

    Leaves out what is missing, as in older files, or makes no sense.
    """
    found = values if isinstance(values, Mapping) else {}
    kinds = {"epoch": int, "val_nats": float, "train_nats": float}
    known = {name: found[name] for name, kind in kinds.items() if type(found.get(name)) is kind}
    return {name: value for name, value in known.items() if 0 <= value < 1e9}
