"""Several trained models as one: the average of their weights, or the ensemble of their predictions."""

from __future__ import annotations

import io
import os
import warnings
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from charlm.checkpoint.format import KEY, PREFIX, Checkpoint
from charlm.checkpoint.loading import load_checkpoint
from charlm.checkpoint.paths import StrPath, find_checkpoint
from charlm.checkpoint.safe_loading import read_safely
from charlm.checkpoint.storage import Store
from charlm.errors import UsageError
from charlm.inference.language_model import LanguageModel
from charlm.models.ensemble import Ensemble


def load_ensemble(paths: Sequence[StrPath], trust: Iterable[str] = ()) -> LanguageModel:
    """The model whose probabilities are the mean of those in several checkpoints.

    Raises UsageError where they do not read and predict the same characters.
    """
    opened = open_all(paths, trust)
    try:
        network = Ensemble([checkpoint.network for checkpoint in opened.values()]).eval()
    except ValueError as error:
        raise UsageError(f"{' and '.join(map(str, opened))} cannot be one ensemble: {error}") from None
    first = next(iter(opened.values()))
    return LanguageModel(network, first.vocab, first.normalisation, first.config, first.corpus)


def average(paths: Sequence[StrPath], trust: Iterable[str] = ()) -> LanguageModel:
    """The model whose weights are the mean of those in several checkpoints of one run, such as SGDR's cycle ends.

    Raises UsageError where they are not the same kind of network with the same vocabulary.
    """
    opened = open_all(paths, trust)
    (first_path, first), *others = opened.items()
    for path, other in others:
        if other.model != first.model:
            raise UsageError(f"{path} has another model than {first_path}: their weights have no average")
        tuned = other.config.get("init_from") and first.config.get("init_from")  # perhaps from one model
        if other.config.get("seed") != first.config.get("seed") and not tuned:
            warnings.warn(
                f"{first_path} and {path} are of independent runs (their seeds differ): the average of their weights "
                "predicts badly, an ensemble (charlm.load with a list) does not",
                stacklevel=3,
            )
    first.network.load_state_dict(mean_weights([checkpoint.network.state_dict() for checkpoint in opened.values()]))
    return LanguageModel(first.network, first.vocab, first.normalisation, first.config, first.corpus)


def write_average(model: LanguageModel, like: Path, path: Path, store: Store) -> None:
    """Write `model`, of the run that wrote the checkpoint `like`, to `path`. It opens, but no run resumes from it."""
    weights = {PREFIX + name: tensor for name, tensor in model.network.state_dict().items()}
    store.write(path, serialised({KEY: read_safely(like)[KEY], "state_dict": weights}))


def serialised(content: object) -> bytes:
    """`content` as PyTorch writes it to a file."""
    buffer = io.BytesIO()
    torch.save(content, buffer)
    return buffer.getvalue()


COMPLETE = {"newlines": "keep", "unicode": "keep"}  # what earlier checkpoints do not say


def open_all(paths: Sequence[StrPath], trust: Iterable[str]) -> dict[Path, Checkpoint]:
    """The checkpoints, by path. Raises UsageError unless all have one vocabulary and normalisation."""
    if isinstance(paths, str | os.PathLike) or not paths:
        raise UsageError("give a list of checkpoints")
    trusted = [trust] if isinstance(trust, str) else list(trust)
    opened = {path: load_checkpoint(path, trusted) for path in map(find_checkpoint, paths)}
    (first_path, first), *others = opened.items()
    for path, other in others:
        same = {
            "vocabulary": other.vocab.to_dict() == first.vocab.to_dict(),
            "normalisation": COMPLETE | other.normalisation == COMPLETE | first.normalisation,
        }
        for what, equal in same.items():
            if not equal:
                raise UsageError(f"{path} has another {what} than {first_path}: train them on the same text")
    return opened


def mean_weights(states: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """The mean of each floating tensor, computed in float64; of others, the last."""
    mean = dict(states[-1])
    for name, tensor in mean.items():
        if tensor.is_floating_point():
            mean[name] = torch.stack([state[name].double() for state in states]).mean(0).to(tensor.dtype)
    return mean
