"""Ray clusters of a few processes."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.helpers import ROOT, of_extra
from tests.sweeps.processes import kill

Cluster = tuple[str, list["subprocess.Popen[bytes]"]]


@pytest.fixture
def cluster(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[int], Cluster]]:
    """Starts a Ray cluster of so many nodes of a core each, in another folder than ours: its address and its nodes."""
    of_extra("ray", "ray")
    monkeypatch.setenv("HOME", str(tmp_path))  # where Ray keeps the token of another cluster
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    temporary = tempfile.mkdtemp(prefix="ray")  # a short path, for sockets
    port = address.rpartition(":")[2]
    first = ["--head", f"--port={port}", "--include-dashboard=false", f"--temp-dir={temporary}"]
    common = ["--node-ip-address=127.0.0.1", "--num-cpus=1", "--object-store-memory=80000000", "--block"]
    nodes: list[subprocess.Popen[bytes]] = []

    def start(count: int) -> Cluster:
        for kind in [first, *([f"--address={address}"] for _ in range(count - 1))]:
            arguments = [sys.executable, "-m", "ray.scripts.scripts", "start", *kind, *common, "--disable-usage-stats"]
            env = {**os.environ, "PYTHONPATH": str(ROOT)}
            with (tmp_path / "ray.log").open("ab") as log:
                nodes.append(subprocess.Popen(arguments, cwd=tmp_path, env=env, stdout=log, stderr=log))
            deadline = time.monotonic() + 60
            while (tmp_path / "ray.log").read_bytes().count(b"Ray runtime started") < len(nodes):
                assert time.monotonic() < deadline, (tmp_path / "ray.log").read_text()
                time.sleep(0.1)
        return address, nodes

    try:
        yield start
    finally:
        for node in nodes:
            kill(node)
        shutil.rmtree(temporary, ignore_errors=True)
