"""Sizes of the training, validation and test splits."""

from __future__ import annotations

from charlm.data.options import DataOptions
from charlm.errors import OptionError, UsageError

SPLITS = ("train", "val", "test")


def split_sizes(total: int, options: DataOptions, unit: str = "characters") -> dict[str, int]:
    """Sizes of the three splits of `total` characters or windows (`unit`), in order.

    Raises UsageError when they do not fit.
    """
    asked = {"val": options.val, "test": options.test}
    if options.train is not None:
        asked["train"] = options.train
    # Without the small term, 0.29 of 100 would be 28.
    sizes = {name: int(size * total + 1e-6) if isinstance(size, float) else size for name, size in asked.items()}
    sizes.setdefault("train", total - sum(sizes.values()))
    if options.train is not None and sizes["train"] < 1:
        raise OptionError("train", f"leaves no training data: it must be at least 1 of {total:,} {unit}", options.train)
    if sizes["train"] < 1 or sum(sizes.values()) > total:
        parts = " + ".join(f"data.{name} {sizes[name]:,}" for name in SPLITS if name in asked)
        raise UsageError(f"{parts} do not fit into the {total:,} {unit} of the text: lower them, or give more text")
    return {name: sizes[name] for name in SPLITS}
