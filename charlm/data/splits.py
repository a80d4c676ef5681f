"""How a text is shared out between training, validation and test."""

from __future__ import annotations

from charlm.errors import UsageError

SPLITS = ("train", "val", "test")


def share(name: str, value: object, total: int) -> int:
    """How many of `total` a split gets: a float is a fraction below 1, an int a count."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise UsageError(f"{name}={value} must be a fraction such as 0.1 or a count such as 100000")
    if not (0 <= value < 1 if isinstance(value, float) else value >= 0):
        raise UsageError(f"{name}={value} must be a fraction from 0 to below 1, or a count of at least 0")
    return int(value * total + 1e-6) if isinstance(value, float) else value


def split_sizes(total: int, train: float | None, val: float, test: float, unit: str) -> dict[str, int]:
    """Sizes of the three contiguous splits, in order; `train` None takes what val and test leave."""
    sizes = {"val": share("data.val", val, total), "test": share("data.test", test, total)}
    left = total - sum(sizes.values())
    sizes["train"] = left if train is None else share("data.train", train, total)
    if train is not None and sizes["train"] < 1:
        raise UsageError(
            f"data.train={train} leaves nothing to train on: it must come to at least 1 of {total:,} {unit}"
        )
    if sizes["train"] > left or left < 1:
        asked = " + ".join(f"data.{name} {sizes[name]:,}" for name in SPLITS if name != "train" or train is not None)
        raise UsageError(f"{asked} do not fit into the {total:,} {unit} of the text: lower them, or give more text")
    return {name: sizes[name] for name in SPLITS}
