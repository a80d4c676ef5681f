"""The folder of a run: claimed by one process, with the config in ``.hydra/`` as Hydra writes it."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout
from omegaconf import OmegaConf

from charlm.checkpoint.storage import replace_file
from charlm.errors import UsageError
from charlm.run.compose import Job
from charlm.run.instantiate import escape
from charlm.run.resume import check_unused
from charlm.run.settings import Settings


@contextlib.contextmanager
def claimed(folder: Path, *, new: bool) -> Iterator[None]:
    """Lock `folder` against other processes. A killed process releases the lock."""
    try:
        (folder / ".hydra").mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(f"{folder} cannot be written: {error.strerror or error}; choose another folder") from None
    try:
        with FileLock(folder / ".hydra/lock", timeout=0):
            if new:
                check_unused(folder)  # again, now that no other process can interfere
            yield
    except Timeout:
        raise UsageError(f"{folder} is being trained by another process: wait for it, or stop it") from None


def save_config(settings: Settings, folder: Path, job: Job, *, new: bool) -> None:
    """Write the settings to ``.hydra/`` in the run folder, as Hydra does; for a resumed run, only the config."""
    files: dict[str, Any] = {"config": settings.model_dump()}
    if new:
        files |= {"overrides": job.overrides} | ({"hydra": job.hydra} if job.hydra else {})
    (folder / ".hydra").mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        replace_file(folder / f".hydra/{name}.yaml", OmegaConf.to_yaml(OmegaConf.create(escape(content))).encode())
