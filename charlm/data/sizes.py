"""Batch size, bptt and epochs that suit the size of a text: ``data.batch_size=auto`` and the like."""

from __future__ import annotations

from charlm.data.options import DataOptions

LADDER = (  # up to so many training characters: batch size, bptt, epochs
    (10_000, 4, 32, 20),
    (100_000, 8, 32, 12),
    (1_000_000, 16, 64, 12),
    (10_000_000, 32, 64, 6),
    (float("inf"), 64, 64, 3),
)
LEAST_STEPS = 400  # of a run with the user's own text; a lesson's model learns little in fewer
EPOCHS = 9  # for every other corpus


def rung(characters: int) -> tuple[int, int, int]:
    """Batch size, bptt and epochs for a training split of so many characters: the rule behind ``auto``.

    A short text needs small batches, so that an epoch has more than a few steps, and more epochs until it is learnt:

        up to    10,000 characters  batch size  4, bptt 32, 20 epochs
        up to   100,000             batch size  8, bptt 32, 12 epochs
        up to 1,000,000             batch size 16, bptt 64, 12 epochs
        up to        10 million     batch size 32, bptt 64,  6 epochs
        above                       batch size 64, bptt 64,  3 epochs

    There are more epochs where these make fewer than 400 steps. A mix takes the next multiple of its ratio's sum for
    the batch size. docs/texts.md has the measurements.
    """
    return next((rows, bptt, epochs) for most, rows, bptt, epochs in LADDER if characters <= most)


def choose_sizes(options: DataOptions, characters: int) -> DataOptions:
    """`options` with numbers for ``auto``, for a training split of `characters`. Raises OptionError."""
    rows, bptt, _ = rung(characters)
    chosen: dict[str, int] = {}
    if options.bptt == "auto":
        chosen["bptt"] = bptt
    if options.batch_size == "auto":
        length = chosen.get("bptt", options.bptt)
        assert isinstance(length, int)
        if options.ratio:
            part = sum(options.ratio)
            rows = part * -(-rows // part)
        elif options.mode == "streams":
            rows = max(1, min(rows, (characters - 1) // length))
        chosen["batch_size"] = rows
    return DataOptions(**options.model_dump() | chosen) if chosen else options


def choose_epochs(options: DataOptions, characters: int, steps_per_epoch: int) -> int:
    """The epochs of ``trainer.max_epochs=auto``: by `rung` for the user's own text, which has a path, else 9."""
    if not (options.path or options.paths):
        return EPOCHS
    return max(rung(characters)[2], -(-LEAST_STEPS // steps_per_epoch))
