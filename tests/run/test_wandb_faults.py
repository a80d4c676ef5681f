"""Whatever goes wrong in W&B, training continues to the end, and one line says what is missing."""

from __future__ import annotations

import contextlib
import csv
import functools
import http.server
import json
import logging
import os
import resource
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import wandb
from google.protobuf.message import DecodeError
from wandb.sdk import wandb_setup
from wandb.sdk.lib.service import service_process

import charlm
from charlm.run import loggers
from charlm.run import wandb_thread as aside
from charlm.training.module import CharLM
from tests.helpers import ROOT, SMALL, run_train, summary, wandb_records

STEPS = 56  # in two epochs
TINY = (*SMALL[1:], "data.bptt=8", "data.batch_size=8", "trainer.log_every_n_steps=1", "data=text")
ONLINE = {"WANDB_API_KEY": "0123456789" * 4}


@pytest.fixture(autouse=True)
def nothing_is_left() -> Iterator[None]:
    def held() -> tuple[object, ...]:
        return sys.exit, sys.excepthook, logging.raiseExceptions, wandb.run, wandb_setup._singleton

    threads, before = set(threading.enumerate()), held()
    yield
    assert held() == before
    assert set(threading.enumerate()) <= threads


@pytest.fixture
def base(text_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[str, ...]:
    for name in ("WANDB_API_KEY", "WANDB_SERVICE", "WANDB_ERROR_REPORTING", "WANDB_CACHE_DIR", "WANDB_DATA_DIR"):
        monkeypatch.setenv(name, "")  # so that monkeypatch restores it, whatever happens to it
        monkeypatch.delenv(name)
    monkeypatch.setenv("WANDB_CONFIG_DIR", str(tmp_path / "config"))
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    return (*TINY, "logger=wandb", f"data.path={text_file}", f"hydra.run.dir={tmp_path}/run")


def history(folder: Path) -> list[dict[str, Any]]:
    """The rows logged by the newest W&B run in `folder`, as far as they are on disk."""
    return lines(max(folder.glob("wandb/*run-*/*.wandb"), key=lambda path: path.stat().st_mtime_ns))


def lines(file: Path) -> list[dict[str, Any]]:
    found = []
    with contextlib.suppress(DecodeError):  # at the end of a truncated file
        for record in wandb_records(file):
            if record.HasField("history"):
                items = record.history.item
                found.append({i.key or ".".join(i.nested_key): json.loads(i.value_json) for i in items})
    return found


def logged_steps(folder: Path) -> int:
    return sum("train/nats_step" in row for row in history(folder))


def assert_complete(folder: Path) -> None:
    """Assert that all of the run folder's own files are there."""
    made = summary(folder)
    assert (made["epochs"], made["steps"]) == (2, STEPS)
    with (folder / "metrics.csv").open() as file:
        assert [row["epoch"] for row in csv.DictReader(file)] == ["1", "2"]
    assert (folder / "samples.txt").read_text().count("--- epoch") == 2
    for name in ("best_checkpoint", "last_checkpoint"):
        assert charlm.load(made[name]).generate("a", 5)


def the_line(err: str) -> str:
    """The one line on stderr."""
    assert err.startswith("W&B: ") and err.count("\n") == 1, err
    return err


def child() -> int:
    """The process id of wandb-core, W&B's own process."""
    return wandb_setup.singleton()._connection._proc._process.pid


def at_step(monkeypatch: pytest.MonkeyPatch, number: int, act: Callable[[], Any]) -> None:
    """Call `act` before training step `number`."""
    original, count = CharLM.training_step, iter(range(1, 10**9))

    def training_step(self: CharLM, *arguments: Any) -> Any:
        if next(count) == number:
            act()
        return original(self, *arguments)

    monkeypatch.setattr(CharLM, "training_step", training_step)


# Servers.


class Server(http.server.ThreadingHTTPServer):
    """A W&B server that answers with `status` and `body`, never answers, or dies after it has accepted a run."""

    daemon_threads = True

    def __init__(self, status: int = 200, body: bytes = b"", hangs: bool = False, dies: bool = False) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.status, self.body, self.hangs, self.dies = status, body, hangs, dies
        self.released, self.asked = threading.Event(), 0
        threading.Thread(target=self.serve_forever, args=(0.05,), daemon=True).start()

    def stop(self) -> None:
        self.released.set()
        self.shutdown()
        self.server_close()


class Handler(http.server.BaseHTTPRequestHandler):
    server: Server

    def do_POST(self) -> None:
        self.server.asked += 1
        asked = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        if self.server.hangs:
            self.server.released.wait(300)
            return
        if self.server.dies:
            if b"mutation UpsertBucket" not in asked or self.server.asked > 1:
                self.close_connection = True
                return
            name = json.loads(asked)["variables"]["name"]
            project = {"id": "p", "name": "charlm", "entity": {"id": "e", "name": "nobody"}}
            bucket = {"id": "r", "name": name, "displayName": name, "config": "{}", "project": project}
            self.server.body = json.dumps({"data": {"upsertBucket": {"bucket": bucket, "inserted": True}}}).encode()
        self.send_response(self.server.status)
        self.send_header("Content-Length", str(len(self.server.body)))
        self.end_headers()
        self.wfile.write(self.server.body)

    do_GET = do_HEAD = do_PUT = do_POST

    def log_message(self, *arguments: Any) -> None:
        pass


FAULTS: dict[str, Callable[[], Server] | None] = {
    "refused": None,  # nothing listens
    "hangs": functools.partial(Server, hangs=True),
    "500": functools.partial(Server, 500),
    "401": functools.partial(Server, 401, b'{"errors":[{"message":"no such key"}]}'),
    "html": functools.partial(Server, 200, b"<html>Please log in to this network</html>"),
    "dies": functools.partial(Server, dies=True),
}


@pytest.fixture(scope="module")
def programs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, tuple[Path, str, int]]]:
    """The folder, stderr and status of `train.py` with each server, all run at once because they mostly wait."""
    folder = tmp_path_factory.mktemp("servers")
    (folder / "text.txt").write_text("abcdefgh  " * 200)
    started = {}
    servers = {fault: make() for fault, make in FAULTS.items() if make}
    for fault in FAULTS:
        port = servers[fault].server_port if fault in servers else 9
        environment = {**os.environ, **ONLINE, "WANDB_BASE_URL": f"http://127.0.0.1:{port}"}
        environment |= {"WANDB_CONFIG_DIR": str(folder / "config"), "WANDB_ERROR_REPORTING": ""}
        for name in ("WANDB_MODE", "WANDB_SERVICE", "WANDB_SILENT", "WANDB_CONSOLE", "WANDB_ERROR_REPORTING"):
            environment.pop(name, None)
        mode = "auto" if fault == "refused" else "online"  # the same, because ONLINE logs in
        run = [*TINY, "logger=wandb", f"logger.mode={mode}", f"data.path={folder}/text.txt"]
        started[fault] = subprocess.Popen(
            [sys.executable, "train.py", *run, f"hydra.run.dir={folder}/{fault}"],
            cwd=ROOT,
            env=environment,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
    ended = {fault: process.communicate(timeout=200)[1] for fault, process in started.items()}
    for server in servers.values():
        server.stop()
    assert all(server.asked for server in servers.values())
    yield {fault: (folder / fault, ended[fault], started[fault].returncode) for fault in FAULTS}


@pytest.mark.slow
@pytest.mark.parametrize("fault", FAULTS)
def test_no_server_stops_training(fault: str, programs: dict[str, tuple[Path, str, int]]) -> None:
    folder, err, status = programs[fault]
    assert status == 0, err
    line = the_line(err)
    assert_complete(folder)
    print(line, summary(folder)["seconds"])
    assert summary(folder)["seconds"] < 60
    (stored,) = (path for path in folder.glob("wandb/*run-*") if f"/wandb/{path.name} uploads it later" in line)
    assert stored.name.startswith("run-" if fault == "dies" else "offline-run-")
    assert logged_steps(folder) == STEPS  # nothing is lost
    ids = {path.stem for path in folder.glob("wandb/*run-*/*.wandb")}
    assert len(ids) == 1  # a single id, because the server may already know the run


def test_who_is_not_logged_in_is_told_so(base: tuple[str, ...], tmp_path: Path, capfd: Any) -> None:
    run_train(*base, "logger.mode=online")
    assert "you are not logged in (see wandb login); this run is logged offline" in the_line(capfd.readouterr().err)
    assert logged_steps(tmp_path / "run") == STEPS


# Files.


def test_the_wandb_folder_cannot_be_made(base: tuple[str, ...], tmp_path: Path, capfd: Any) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run/wandb").write_text("a file")
    run_train(*base)
    assert "Not a directory" in (line := the_line(capfd.readouterr().err)) and "nothing is logged there" in line
    assert_complete(tmp_path / "run")


@pytest.mark.parametrize(
    "name", ["WANDB_DIR", "WANDB_CACHE_DIR", "WANDB_CONFIG_DIR", "WANDB_DATA_DIR", "TMPDIR", "HOME"]
)
def test_wandb_does_without_folders_of_its_own(
    name: str, base: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: Any
) -> None:
    (tmp_path / "file").write_text("a file")
    monkeypatch.setenv(name, str(tmp_path / "file/folder"))
    run_train(*base)
    assert capfd.readouterr().err == ""
    assert_complete(tmp_path / "run")
    assert logged_steps(tmp_path / "run") == STEPS
    assert [row["samples.nrows"] for row in history(tmp_path / "run") if "samples.nrows" in row] == [1, 2]


@pytest.mark.skipif(not hasattr(resource, "prlimit"), reason="only Linux limits another process")
def test_the_disk_is_full_for_wandb(
    base: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: Any
) -> None:
    at_step(monkeypatch, 20, lambda: resource.prlimit(child(), resource.RLIMIT_FSIZE, (6000, 6000)))
    run_train(*base)
    assert capfd.readouterr().err == ""  # W&B does not notice it
    assert_complete(tmp_path / "run")
    assert len(history(tmp_path / "run")) < STEPS


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 64 KiB."""
    place = tmp_path / "run/wandb"
    place.mkdir(parents=True)
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", place], capture_output=True).returncode:
        pytest.skip("only root can mount a disk")
    yield place
    subprocess.run(["umount", place], check=True)


@pytest.mark.parametrize("left", [0, 20_000])
def test_the_disk_is_really_full(
    left: int, small_disk: Path, base: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: Any
) -> None:
    def fill() -> None:
        with pytest.raises(OSError), (small_disk / "other").open("wb", buffering=0) as file:
            while True:
                file.write(bytes(4096))

    if left:
        at_step(monkeypatch, 20, fill)
    else:
        fill()
    run_train(*base)
    err = capfd.readouterr().err
    assert left or the_line(err)
    assert "Traceback" not in err and err.count("\n") <= 1, err
    assert_complete(tmp_path / "run")


# W&B's process.


@pytest.mark.parametrize("step", [1, 20, STEPS])
def test_wandbs_process_is_killed(
    step: int, base: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: Any
) -> None:
    at_step(monkeypatch, step, lambda: os.kill(child(), signal.SIGKILL))
    run_train(*base)
    assert "missing there" in the_line(capfd.readouterr().err)
    assert_complete(tmp_path / "run")


def test_wandbs_process_hangs(
    base: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: Any
) -> None:
    monkeypatch.setattr(aside, "GIVE_UP", 3)
    at_step(monkeypatch, 20, lambda: os.kill(child(), signal.SIGSTOP))
    began = time.monotonic()
    run_train(*base)
    assert time.monotonic() - began < 20
    assert "it does not finish" in the_line(capfd.readouterr().err)
    assert_complete(tmp_path / "run")


def test_nothing_piles_up_behind_a_process_that_hangs(
    base: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: Any
) -> None:
    monkeypatch.setattr(aside, "GIVE_UP", 1)
    monkeypatch.setattr(aside, "LINES", 5)
    process = threading.Event()
    monkeypatch.setattr(wandb.Run, "log", lambda self, values: process.wait(20))
    at_step(monkeypatch, STEPS, process.set)
    run_train(*base)
    assert "it does not respond; logs from step" in the_line(capfd.readouterr().err)
    assert_complete(tmp_path / "run")


def test_training_does_not_wait_for_a_slow_beginning(
    base: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: Any
) -> None:
    init, trained = wandb.init, threading.Event()
    monkeypatch.setattr(aside, "PATIENCE", 0.1)
    monkeypatch.setattr(wandb, "init", lambda **options: trained.wait(20) and init(**options))
    at_step(monkeypatch, STEPS, trained.set)
    run_train(*base)
    assert capfd.readouterr().err == ""
    assert logged_steps(tmp_path / "run") == STEPS


def test_ctrl_c_ends_the_wait_for_a_beginning(
    base: tuple[str, ...], monkeypatch: pytest.MonkeyPatch, capfd: Any
) -> None:
    def init(**options: Any) -> None:
        threading.Timer(0.5, os.kill, (os.getpid(), signal.SIGINT)).start()
        time.sleep(3)
        raise RuntimeError

    monkeypatch.setattr(wandb, "init", init)
    with pytest.raises(SystemExit) as ended:
        run_train(*base)
    assert ended.value.code == 130 and capfd.readouterr().err == "interrupted\n"


def test_ctrl_c_ends_the_wait_for_wandb(
    base: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: Any
) -> None:
    def hang() -> None:
        os.kill(child(), signal.SIGSTOP)
        threading.Timer(4, os.kill, (os.getpid(), signal.SIGINT)).start()

    at_step(monkeypatch, STEPS, hang)
    began = time.monotonic()
    with pytest.raises(SystemExit) as ended:
        run_train(*base)
    assert ended.value.code == 130 and 3 < time.monotonic() - began < 20
    assert "it does not finish" in capfd.readouterr().err


def test_wandbs_process_cannot_start(
    base: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: Any
) -> None:
    monkeypatch.setattr(service_process, "get_core_path", lambda: "/bin/false")
    run_train(*base)
    assert "exited with code 1; nothing is logged there" in the_line(capfd.readouterr().err)
    assert_complete(tmp_path / "run")


def test_the_next_job_of_a_sweep_gets_its_wandb_run(
    base: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: Any
) -> None:
    at_step(monkeypatch, 20, lambda: os.kill(child(), signal.SIGKILL))
    descriptors = len(os.listdir("/proc/self/fd"))
    run_train("-m", "seed=1,2,3", *base[:-1], f"hydra.sweep.dir={tmp_path}/sweep")
    assert capfd.readouterr().err == ""
    folders = sorted((tmp_path / "sweep").glob("*_text"))
    said = [line for folder in folders for line in (folder / "train.log").read_text().splitlines(keepends=True)]
    the_line("".join(line for line in said if "W&B: " in line))
    assert [logged_steps(folder) for folder in folders[1:]] == [STEPS, STEPS]
    for folder in folders:
        assert_complete(folder)
    assert len(os.listdir("/proc/self/fd")) <= descriptors + 1


# W&B's code.


def test_wandb_cannot_be_imported(
    base: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: Any
) -> None:
    monkeypatch.setitem(sys.modules, "wandb", None)
    run_train(*base)
    assert "wandb" in (line := the_line(capfd.readouterr().err)) and "nothing is logged there" in line
    assert_complete(tmp_path / "run")


def fails(error: BaseException) -> Callable[..., Any]:
    def function(*arguments: Any, **options: Any) -> None:
        raise error

    return function


@pytest.mark.parametrize("error", [ZeroDivisionError("what is this?"), TypeError("wrong"), SystemExit(3), OSError()])
@pytest.mark.parametrize("place", [(wandb, "init"), (wandb.Run, "log"), (wandb.Run, "finish"), (wandb, "Table")])
def test_wandb_raises_what_nobody_expects(
    place: tuple[Any, str],
    error: BaseException,
    base: tuple[str, ...],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: Any,
) -> None:
    if place[1] == "Table" and isinstance(error, SystemExit):
        return  # in the training thread, SystemExit may be the user's
    monkeypatch.setattr(*place, fails(error))
    run_train(*base, "callbacks.samples.length=5")
    line = the_line(capfd.readouterr().err)
    assert (str(error) or type(error).__name__) in line
    assert_complete(tmp_path / "run")


# The user's mistakes.


@pytest.mark.parametrize(
    ("option", "sentence"),
    [
        ("logger.mode=nonsense", "logger.mode='nonsense' must be 'auto', 'online' or 'offline'"),
        ("+logger.nonsense=1", "logger.nonsense is not an option of wandb_logger"),
        ("logger.project=a/b", "logger: Invalid project name 'a/b'"),
        ("logger.project=[3]", "logger.project=[3] must be text"),
        (f"logger.tags=[{'x' * 65}]", "Tags must be between 1 and 64 characters"),
        ("logger.group=true", "logger.group=true must be text"),
    ],
)
def test_the_users_mistakes_are_refused(option: str, sentence: str, base: tuple[str, ...], capfd: Any) -> None:
    with pytest.raises(SystemExit) as ended:
        run_train(*base, option)
    err = capfd.readouterr().err
    assert ended.value.code == 2 and err.startswith("error: ") and err.count("\n") == 1 and sentence in err, err


# Resuming.


def test_a_resumed_run_resumes_its_wandb_run(base: tuple[str, ...], tmp_path: Path, capfd: Any) -> None:
    run_train(*base, "trainer.max_epochs=1")
    for epochs in (2, 3):
        run_train(f"resume={tmp_path}/run", f"trainer.max_epochs={epochs}")
    assert capfd.readouterr().err == ""
    files = sorted((tmp_path / "run").glob("wandb/offline-run-*/*.wandb"))
    assert len(files) == 3 and len({file.name for file in files}) == 1
    steps = {line["trainer/global_step"] for file in files for line in lines(file)}
    assert steps == set(range(STEPS * 3 // 2))


def test_the_newest_wandb_run_is_resumed(tmp_path: Path) -> None:
    names = ("run-20260102_000000-old", "offline-run-20260103_000000-new", "run-20260101_000000-older")
    for name in names:
        (tmp_path / "wandb" / name).mkdir(parents=True)
        (tmp_path / "wandb" / name / f"run-{name.rpartition('-')[2]}.wandb").touch()
    (tmp_path / "wandb/latest-run").symlink_to(names[0])
    assert loggers._earlier_run(tmp_path) == "new"
    assert loggers._earlier_run(tmp_path / "elsewhere") is None


def test_a_resumed_run_keeps_the_csv_of_before(base: tuple[str, ...], tmp_path: Path) -> None:
    run_train(*base, "logger=csv", "trainer.max_epochs=1")
    before = (tmp_path / "run/csv/metrics.csv").read_bytes()
    for epochs in (2, 3):
        run_train(f"resume={tmp_path}/run", f"trainer.max_epochs={epochs}")
    found = []
    for name in ("csv", "csv-2", "csv-3"):
        with (tmp_path / "run" / name / "metrics.csv").open() as file:
            found.append([int(row["step"]) for row in csv.DictReader(file) if row["train/nats_step"]])
    half = STEPS // 2
    assert found == [list(range(start, start + half)) for start in (0, half, STEPS)]
    assert (tmp_path / "run/csv/metrics.csv").read_bytes() == before


def test_a_full_disk_does_not_stop_the_csv_logger(
    base: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: Any
) -> None:
    monkeypatch.setattr(loggers.CSVLogger, "save", fails(OSError(28, "No space left on device")))
    run_train(*base, "logger=csv")
    err = capfd.readouterr().err
    assert err.endswith("run/csv cannot be written: No space left on device; training continues\n")
    assert err.count("\n") == 1
    assert_complete(tmp_path / "run")
