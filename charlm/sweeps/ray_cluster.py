"""The Ray cluster of a sweep: one that runs already, or one that this machine starts for it."""

from __future__ import annotations

import logging
import os
import re
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from omegaconf import DictConfig, OmegaConf

from charlm.errors import UsageError, first_line

PATIENCE = 5  # seconds to wait for an answer; Ray itself would wait for minutes
START = "start one with ray start --head, or leave it out to use this machine alone"


@contextmanager
def connected(options: DictConfig) -> Iterator[None]:
    """Connect to the cluster that `options` for ``ray.init`` describe, quietly; leave it in the end.

    Hydra's launcher would ask a cluster that runs already for memory, which Ray refuses. Raises UsageError if there is
    no cluster.
    """
    import ray

    given: Any = OmegaConf.to_container(options, resolve=True)
    address = given.get("address") or os.environ.get("RAY_ADDRESS")
    named = f"hydra.launcher.ray.init.address={address}" if given.get("address") else f"RAY_ADDRESS={address}"
    if address:
        check_answers(address, named)
    quiet = {"logging_level": logging.ERROR, "log_to_driver": False, "configure_logging": True}
    if not address or address == "local":
        quiet |= {"include_dashboard": False}
    try:
        ray.init(**{**quiet, **given})
    except Exception as error:
        about = f"{named}: there is no Ray cluster" if address else "Ray cannot start"
        raise UsageError(f"{about} ({first_line(error)}){f': {START}' if address else ''}") from None
    try:
        yield
    finally:
        ray.shutdown()


def check_answers(address: str, named: str) -> None:
    """Raise UsageError if nothing answers at ``HOST:PORT`` or ``ray://HOST:PORT``."""
    if not (found := re.fullmatch(r"(?:ray://)?([\w.-]+):(\d+)", address)):
        return  # auto, or local
    try:
        socket.create_connection((found[1], int(found[2])), PATIENCE).close()
    except (OSError, OverflowError) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else first_line(error)
        raise UsageError(f"{named}: no Ray cluster answers there ({reason}): {START}") from None
