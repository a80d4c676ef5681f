"""Fine-tuning: ``init_from=RUN`` starts a run from the weights of another one, on a new text."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

import torch
from torch import Tensor

from charlm.checkpoint.building import build_network
from charlm.checkpoint.format import Checkpoint
from charlm.checkpoint.loading import load_checkpoint
from charlm.checkpoint.paths import find_checkpoint
from charlm.errors import UsageError
from charlm.models.network import Network
from charlm.run.settings import Settings
from charlm.text.vocab import Vocab


def open_start(settings: Settings, given: Collection[str]) -> tuple[Settings, Checkpoint]:
    """The checkpoint that ``init_from`` names, and `settings` with its model and the model's options that were `given`.

    Raises UsageError for a checkpoint that cannot be used, and for another model.
    """
    if not str(settings.init_from).strip():
        raise UsageError("init_from= is empty: give a run's folder, or a .ckpt file")
    path = find_checkpoint(settings.init_from)
    opened = load_checkpoint(path)
    ours, theirs = settings.model, opened.model
    if {"model", "model._target_"} & set(given) and ours["_target_"] != theirs["_target_"]:
        mine, other = (str(target).rpartition(".")[2] for target in (ours["_target_"], theirs["_target_"]))
        raise UsageError(f"model is {mine}, but init_from={path} is a {other}: leave out model=, the file says it")
    names = [name.removeprefix("model.").partition(".")[0] for name in given if name.startswith("model.")]
    return settings.model_copy(update={"model": theirs | {name: ours[name] for name in names if name in ours}}), opened


def adopt(network: Network, vocab: Vocab, start: Checkpoint, trust: Collection[str] | None) -> str:
    """Give `network` the weights of `start`, those of a character to the same character; says what it did.

    A character that `start` does not know keeps its initial weights. Raises UsageError for weights of other sizes.
    """
    old, new = rows(start.vocab), rows(vocab)
    common = [symbol for symbol in new if symbol in old]
    ours, theirs = ([ids[symbol] for symbol in common] for ids in (new, old))
    source = start.network.state_dict()
    blocks = vocabulary_blocks(start.model, len(start.vocab), trust)
    with torch.no_grad():
        for name, weight in network.state_dict().items():
            given, along = source.get(name), blocks.get(name, {})
            if given is None or sizes(given, along) != sizes(weight, along):
                there = "missing" if given is None else list(given.shape)
                raise UsageError(
                    f"init_from: {name!r} is {list(weight.shape)} in this model, but {there} in the checkpoint: "
                    f"leave out model.*, so that the checkpoint determines the sizes"
                )
            if not along:
                weight.copy_(given)
                continue
            places = [torch.arange(size) for size in weight.shape]
            for dimension, count in along.items():
                chosen = torch.tensor([len(start.vocab) * block + i for block in range(count) for i in theirs])
                places[dimension] = torch.tensor([len(vocab) * block + i for block in range(count) for i in ours])
                given = given.index_select(dimension, chosen)
            weight[torch.meshgrid(*places, indexing="ij")] = given.to(weight)
    added = len(vocab) - len(common)
    alien = "" if common else "; the texts have no character in common, so only the recurrent weights are kept"
    return f"{len(common)} of {len(start.vocab)} symbols kept, {added} new{alien}"


def rows(vocab: Vocab) -> dict[str, int]:
    """The id of each character and special symbol."""
    specials = [name for name, there in (("<pad>", vocab.pad), ("<unk>", vocab.unk)) if there]
    return {symbol: i for i, symbol in enumerate([*specials, *vocab.chars])}


def vocabulary_blocks(spec: Mapping[str, Any], size: int, trust: Collection[str] | None) -> dict[str, dict[int, int]]:
    """For each weight, the dimensions that have an entry per symbol, and how many such blocks follow each other there.

    Found by building the network with one symbol more, without allocating memory, so that it works for every family.
    """

    def shapes(vocab_size: int) -> dict[str, torch.Size]:
        with torch.random.fork_rng(devices=[]):
            try:
                with torch.device("meta"):
                    built = build_network(spec, vocab_size, trust)
            except UsageError:  # its constructor reads a tensor, which has no values there
                built = build_network(spec, vocab_size, trust)
        return {name: weight.shape for name, weight in built.state_dict().items()}

    larger = shapes(size + 1)
    return {
        name: {i: b - a for i, (a, b) in enumerate(zip(shape, larger[name], strict=True)) if 0 < (b - a) * size == a}
        for name, shape in shapes(size).items()
    }


def sizes(weight: Tensor, without: Collection[int]) -> list[int]:
    """The sizes of `weight` in the other dimensions."""
    return [size for dimension, size in enumerate(weight.shape) if dimension not in without]
