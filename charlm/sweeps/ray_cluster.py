"""The Ray cluster of a sweep: one that runs already, or one that this machine starts for it."""

from __future__ import annotations

import functools
import logging
import os
import re
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from charlm.errors import UsageError, first_line

PATIENCE = 5  # seconds to wait for an answer; Ray itself would wait for minutes
TOKEN = Path("~/.ray/auth_token").expanduser()
START = "start one with ray start --head, or leave it out to use this machine alone"


@contextmanager
def connected(options: DictConfig) -> Iterator[None]:
    """Connect to the cluster that `options` for ``ray.init`` describe, quietly; leave it in the end.

    If the user has connected this process already, that is the cluster. Hydra's launcher would ask a cluster that runs
    already for memory, which Ray refuses. Raises UsageError if there is no cluster.
    """
    import ray

    if ray.is_initialized():
        yield
        return
    given: Any = OmegaConf.to_container(options, resolve=True)
    address = given.get("address") or os.environ.get("RAY_ADDRESS")
    named = f"hydra.launcher.ray.init.address={address}" if given.get("address") else f"RAY_ADDRESS={address}"
    if address:
        check_answers(address, named)
    quiet: dict[str, Any] = {"logging_level": logging.ERROR, "log_to_driver": False, "configure_logging": True}
    if not address or address == "local":
        # Without "local", Ray looks for any cluster that was started on this machine.
        quiet |= {"include_dashboard": False, "address": "local"}
    try:
        with groups_of_their_own():
            ray.init(**{**quiet, **{name: value for name, value in given.items() if value is not None}})
    except Exception as error:
        about = f"{named}: there is no Ray cluster" if address else "Ray cannot start"
        more = f": {START}" if address else ""
        if address and TOKEN.exists() and "RAY_AUTH_MODE" not in os.environ:
            more += f"; if there is one that asks for the token in {TOKEN}, set RAY_AUTH_MODE=token"
        raise UsageError(f"{about} ({first_line(error)}){more}") from None
    try:
        yield
    finally:
        ray.shutdown()


@contextmanager
def groups_of_their_own() -> Iterator[None]:
    """Processes that begin in this context do not get the signals for all of ours, as from ``timeout`` or a terminal.

    SIGTERM would end Ray before the trials or jobs have saved.
    """
    process: Any = subprocess.Popen
    original = process.__init__
    if sys.platform != "win32":
        process.__init__ = functools.partialmethod(original, process_group=0)
    try:
        yield
    finally:
        process.__init__ = original


def check_answers(address: str, named: str) -> None:
    """Raise UsageError if nothing answers at ``HOST:PORT`` or ``ray://HOST:PORT``."""
    if not (found := re.fullmatch(r"(?:ray://)?([\w.-]+):(\d+)", address)):
        return  # auto, or local
    try:
        socket.create_connection((found[1], int(found[2])), PATIENCE).close()
    except (OSError, OverflowError) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else first_line(error)
        raise UsageError(f"{named}: no Ray cluster answers there ({reason}): {START}") from None
