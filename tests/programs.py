"""Run the programs as a user does, and check how they end."""

from __future__ import annotations

import functools
import os
import pty
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from tests.helpers import ROOT

NOWHERE = "http://127.0.0.1:9"  # nothing listens there, so no test reaches the network
PROXIES = {name: NOWHERE for proxy in ("http_proxy", "https_proxy", "all_proxy") for name in (proxy, proxy.upper())}


@dataclass(frozen=True)
class Outcome:
    """How a program ended."""

    status: int
    out: str
    err: str

    def is_refusal(self, *named: str, sentences: bool = True) -> bool:
        """Assert a clean refusal that names all of `named`, on one line unless the message is Hydra's."""
        assert "Traceback" not in self.out + self.err, self
        assert self.status == 2, self
        assert self.err.startswith("error: "), self
        assert not sentences or self.err.count("\n") == 1, self
        assert not sentences or len(self.err) < 600, self
        for name in named:
            assert name in self.err, self
        return True


def environment(tmp_path: Path) -> dict[str, str]:
    """An environment without network, debugging or existing cache."""
    kept = {k: v for k, v in os.environ.items() if k not in ("HYDRA_FULL_ERROR", "NO_PROXY", "no_proxy")}
    fonts = str(
        Path(tempfile.gettempdir()) / "charlm-tests-matplotlib"
    )  # Matplotlib's list of fonts takes long to make
    return {**kept, **PROXIES, "XDG_CACHE_HOME": str(tmp_path / "cache"), "MPLCONFIGDIR": fonts}


def program(script: str, *arguments: str, cwd: Path = ROOT, env: dict[str, str]) -> Outcome:
    done = subprocess.run(
        [sys.executable, str(ROOT / script), *arguments],
        cwd=cwd,
        env=env,
        capture_output=True,
        text=True,
        encoding="utf-8",
        timeout=120,
    )
    return Outcome(done.returncode, done.stdout, done.stderr)


def heed_signals() -> None:
    """Undo what a shell's & and nohup do, under which the tests may run."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGHUP, signal.SIG_DFL)


def begin(*arguments: str, env: dict[str, str], cwd: Path = ROOT) -> subprocess.Popen[str]:
    """train.py in a process group of its own, so that all of it can be killed."""
    return subprocess.Popen(
        [sys.executable, str(ROOT / "train.py"), *arguments],
        cwd=cwd,
        env=env,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        preexec_fn=heed_signals,
    )


def in_terminal(*arguments: str, env: dict[str, str]) -> tuple[subprocess.Popen[bytes], int]:
    """train.py in a terminal of its own, which closes with the descriptor that is returned."""
    master, slave = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "train.py", *arguments],
        cwd=ROOT,
        env=env,
        stdin=slave,
        stdout=slave,
        stderr=slave,
        start_new_session=True,
        preexec_fn=functools.partial(signal.signal, signal.SIGHUP, signal.SIG_DFL),
    )
    os.close(slave)
    os.set_blocking(master, False)
    return process, master


def read_until(happened: Callable[[], bool], terminal: int) -> None:
    """Read what is printed to `terminal`, which would otherwise fill up, until it `happened`."""
    deadline = time.monotonic() + 60
    while not happened():
        assert time.monotonic() < deadline
        time.sleep(0.05)
        with suppress(OSError):  # nothing to read
            os.read(terminal, 100_000)


def nothing_was_trained(run_folder: Path) -> bool:
    """Whether the folder holds at most Hydra's record of the config."""
    return all(name.startswith(".hydra") for name in contents(run_folder))


def contents(folder: Path) -> dict[str, bytes]:
    """Every file below `folder`."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
