"""Run ``train.py`` in a process that kills itself (SIGKILL) at a chosen moment, or that counts the moments.

    python -m tests.faults.child "validation step" 17 OVERRIDES

kills itself at the beginning of the 17th validation step. With ``count FILE`` instead of the moment and its number, it
trains to the end and writes to FILE how often each moment occurred. The framework itself knows nothing of this.
"""

from __future__ import annotations

import json
import os
import runpy
import signal
import stat
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import charlm
from charlm.training.callbacks.history import History
from charlm.training.module import CharLM

TRAIN = Path(charlm.__file__).parents[1] / "train.py"
MOMENTS: dict[str, tuple[Any, str, bool]] = {  # owner and name of a method; whether to act before it runs
    "training step": (CharLM, "training_step", True),
    "optimiser step": (CharLM, "optimizer_step", False),
    "validation step": (CharLM, "validation_step", True),
    "epoch's end, before its row": (History, "on_train_epoch_end", True),
    "epoch's end, after its row": (History, "on_train_epoch_end", False),
    "half a file written": (os, "fsync", True),
    "before a file's renaming": (os, "replace", True),
    "after a file's renaming": (os, "replace", False),
}


def die(moment: str, arguments: tuple[Any, ...]) -> None:
    """Kill this process, perhaps with the file in `arguments` half written."""
    if moment == "half a file written":
        descriptor, status = arguments[0], os.fstat(arguments[0])
        if stat.S_ISREG(status.st_mode):
            os.ftruncate(descriptor, status.st_size // 2)
    os.kill(os.getpid(), signal.SIGKILL)


def watch(moment: str, seen: Callable[[tuple[Any, ...]], None]) -> None:
    """Call `seen` at every `moment`, with the arguments of the method."""
    owner, name, before = MOMENTS[moment]
    method = getattr(owner, name)

    def watched(*args: Any, **kwargs: Any) -> Any:
        if before:
            seen(args)
        value = method(*args, **kwargs)
        if not before:
            seen(args)
        return value

    setattr(owner, name, watched)


def main() -> None:
    """Run ``train.py``, and die or count."""
    moment, which, *overrides = sys.argv[1:]
    counts: Counter[str] = Counter()

    def at(name: str) -> Callable[[tuple[Any, ...]], None]:
        def seen(arguments: tuple[Any, ...]) -> None:
            counts[name] += 1
            if moment == name and counts[name] == int(which):
                die(name, arguments)

        return seen

    for name in MOMENTS if moment == "count" else [moment]:
        watch(name, at(name))
    sys.argv = [str(TRAIN), *overrides]
    try:
        runpy.run_path(str(TRAIN), run_name="__main__")
    finally:
        if moment == "count":
            Path(which).write_text(json.dumps(counts))


if __name__ == "__main__":
    main()
