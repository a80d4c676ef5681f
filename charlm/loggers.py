"""Where figures go besides the run folder's own files. Each function serves one ``conf/logger/*.yaml``.

None of them stops training. W&B works in a thread of its own, every wait for it has an end, and what goes
wrong there costs one line on the terminal: the run's own files do not depend on it.
"""

from __future__ import annotations

import itertools
import logging
import math
import os
import queue
import shlex
import struct
import subprocess
import sys
import threading
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from pytorch_lightning.loggers import CSVLogger, Logger, WandbLogger

from charlm.errors import UsageError
from charlm.options import choice

PATIENCE = 5  # seconds in which W&B should have begun; training does not wait any longer
INIT_SECONDS = 20  # for the server to accept a run, before it is logged offline
FINISH_SECONDS = 20  # for the server to take what is left at the end
GIVE_UP = INIT_SECONDS + FINISH_SECONDS + 15  # seconds after training; then W&B's process is killed
LINES = 10_000  # how many may wait for W&B
STEP = "trainer/global_step"  # Lightning's name for it


def wandb_logger(
    folder: Path,
    config: dict[str, Any],
    sweep: str | None,
    project: str,
    mode: str,
    group: str | None,
    tags: list[str],
) -> Logger | None:
    """A W&B run in `folder`, silent on the console; a resumed run goes on with the W&B run of before.

    `mode` "auto" is online when the user is logged in (or as ``WANDB_MODE`` says), else offline: no
    account is needed and nothing is asked. Raises UsageError for values that W&B does not take.
    """
    choice("logger.mode", mode, ("auto", "online", "offline"))
    os.environ.setdefault("WANDB_SILENT", "true")
    os.environ.setdefault("WANDB_CONSOLE", "off")
    # Reports of W&B's own errors: they go to its server, and a server that hangs keeps the program from ending.
    os.environ.setdefault("WANDB_ERROR_REPORTING", "false")
    try:
        import wandb
        from wandb import env
        from wandb.sdk import wandb_setup
        from wandb.sdk.lib import runid
    except Exception as error:  # a broken installation raises anything
        _say(f"{_reason(error)}; nothing is logged there")
        return None
    options: dict[str, Any] = {"project": project, "run_group": group or sweep, "run_tags": tags}
    options |= {"run_name": folder.name, "root_dir": str(folder), "init_timeout": INIT_SECONDS}
    try:
        settings = wandb.Settings(finish_timeout=FINISH_SECONDS, finish_timeout_raises=True, **options)
    except (wandb.errors.UsageError, ValueError) as error:
        raise UsageError(f"logger: {_reason(error)}") from None
    for name, place in {env.CACHE_DIR: env.get_cache_dir(), env.DATA_DIR: Path(env.get_data_dir())}.items():
        with suppress(OSError):
            place.mkdir(parents=True, exist_ok=True)
        if not os.access(place, os.W_OK):  # without the first, W&B's process writes its log on the terminal
            os.environ[name] = str(folder.absolute() / "wandb/cache")
    earlier = _earlier(folder)
    # One for both attempts: the server may know the run though its answer did not come.
    identity = earlier or os.environ.get("WANDB_RUN_ID") or runid.generate_id()

    def begin(offline: bool) -> Any:
        """A W&B run, offline or as the user wants it."""
        how: Any = "offline" if offline else mode
        if how != "auto":
            wandb_setup.singleton().settings.mode = how  # what the user asked for here comes before WANDB_MODE
        logged_in = how != "offline" and wandb.login(prompt=False, verify=False)
        if how == "auto":
            how = os.environ.get("WANDB_MODE") or ("online" if logged_in else "offline")
        if how not in ("offline", "dryrun", "disabled") and not logged_in:  # else W&B would ask, and wait
            raise RuntimeError("nobody is logged in (see wandb login)")
        resume: Any = "allow" if earlier else None
        return wandb.init(config=config, settings=settings, mode=how, id=identity, resume=resume)

    return _Wandb(_Aside(begin))


def csv_logger(folder: Path, config: dict[str, Any], sweep: str | None) -> Logger:
    """Every logged step in ``csv/metrics.csv``; what a resumed run logs in ``csv-2``, ``csv-3`` …"""
    names = itertools.chain(["csv"], (f"csv-{number}" for number in itertools.count(2)))
    # Lightning deletes what is there of before.
    return _Csv(save_dir=folder, name=next(n for n in names if not any(folder.glob(f"{n}/*"))), version="")


def no_logger(folder: Path, config: dict[str, Any], sweep: str | None) -> Logger | None:
    """Nothing besides the run folder's own files."""
    return None


class _Csv(CSVLogger):
    """Lightning's CSV logger, which a full disk does not stop: what it did not take is tried again with the next."""

    _failed = False

    def save(self) -> None:
        try:
            super().save()
        except OSError as error:
            if not self._failed:
                reason = error.strerror or error
                print(f"{self.root_dir} cannot be written: {reason}; training goes on", file=sys.stderr)
            self._failed = True


class _Wandb(WandbLogger):
    """Lightning's W&B logger, on a run that stands `aside`."""

    def __init__(self, aside: _Aside) -> None:
        super().__init__(experiment=aside)  # type: ignore[arg-type]
        self._aside = aside

    def log_table(self, key: str, *args: Any, **options: Any) -> None:
        try:
            super().log_table(key, *args, **options)
        except Exception as error:
            self._aside.fail(f"{_reason(error)}; missing there: {key}")


class _Aside:
    """A W&B run in a thread of its own. It has what Lightning's WandbLogger needs: `log`, and `finish` at the end.

    `begin` makes the run; when it fails, it is asked for one that is offline. Only the first thing that goes
    wrong is said; while W&B's process works, what can still be logged is.
    """

    def __init__(self, begin: Callable[[bool], Any]) -> None:
        self._begin = begin
        self._lines: queue.SimpleQueue[dict[str, Any] | None] = queue.SimpleQueue()
        self._exit_code = 1
        self._failed = self._given_up = False
        self._service: Any = None
        # W&B replaces the first two for good each time that its process starts. The third: on a full disk its
        # own log would print a traceback for each line.
        self._before = sys.exit, sys.excepthook, logging.raiseExceptions
        logging.raiseExceptions = False
        self._begun, self._ended = threading.Event(), threading.Event()
        self._thread = threading.Thread(target=self._work, name="charlm-wandb", daemon=True)
        self._thread.start()
        try:
            self._begun.wait(PATIENCE)
        except BaseException:  # the user does not wait either
            self._failed = True  # and needs no line
            self._end(0)
            raise

    def log(self, values: dict[str, Any]) -> None:
        """Log `values` some time soon."""
        if self._ended.is_set():
            return
        if self._lines.qsize() < LINES:
            self._lines.put(values)
        else:
            self.fail(f"it is stuck; what is logged from step {_step(values)} on is missing there")

    def finish(self, exit_code: int) -> None:
        """End the run and W&B's process, within `GIVE_UP` seconds and a few more."""
        self._exit_code = exit_code
        self._end(GIVE_UP)

    def fail(self, what: str) -> None:
        """Say `what` goes wrong, if it is the first."""
        if not self._failed:
            self._failed = True
            _say(what)

    def _end(self, seconds: float) -> None:
        self._lines.put(None)
        try:
            self._ended.wait(seconds)  # not the thread's join, which an interrupt confuses
        finally:
            if not self._ended.is_set():
                self._given_up = True
                self.fail("it does not end; the last of what was logged may be missing there")
                self._kill_service()
                self._ended.wait(5)
            self._thread.join(1 if self._ended.is_set() else 0)
            sys.exit, sys.excepthook, logging.raiseExceptions = self._before

    def _work(self) -> None:
        try:
            run = self._run()
            self._begun.set()
            self._serve(run)
        except BaseException as error:  # SystemExit, too: in a thread it would end without a word
            more = " more" if self._begun.is_set() else ""
            self.fail(f"{_reason(error)}; nothing{more} is logged there")
        finally:
            self._end_service()
            self._begun.set()
            self._ended.set()

    def _run(self) -> Any:
        """The run as the user wants it, or else offline."""
        try:
            return self._begin(False)
        except Exception as error:
            if self._given_up:
                raise
            reason = _reason(error)
        self._end_service()
        try:
            run = self._begin(True)
        except Exception:
            raise RuntimeError(reason) from None
        _say(f"{reason}; this run is logged offline, {_sync(run)} sends it later")
        return run

    def _serve(self, run: Any) -> None:
        """Log what comes, and end the run."""
        logged, troubles = 0, []
        refused: set[frozenset[str]] = set()  # not tried again: without a server, a table takes ten seconds to fail
        for values in iter(self._lines.get, None):
            try:
                if frozenset(values) not in refused:
                    run.log(values)
                    logged += 1
            except Exception as error:
                since = f"from step {_step(values)} on"
                if self._is_dead():
                    self.fail(f"{_reason(error)}; what is logged {since} is missing there")
                    return
                refused.add(frozenset(values))
                names = ", ".join(sorted(values.keys() - {STEP}))
                troubles.append(f"{_reason(error)}; missing there: {names} {since}")
        try:
            run.finish(exit_code=self._exit_code)
            self._end_service()  # it may still be writing
            for path in Path(run.dir).parent.glob("run-*.wandb"):
                if (missing := logged - _stored(path)) > 0:  # W&B does not say when it cannot write
                    troubles.append(f"{missing} of {logged} lines are missing in {path}; is the disk full?")
        except TimeoutError:
            troubles.append(f"the server has not taken everything in {FINISH_SECONDS} s; {_sync(run)} sends it later")
        except Exception as error:
            troubles.append(f"{_reason(error)}; the end of this run is missing there")
        if troubles:
            self.fail("; ".join(troubles))

    def _end_service(self) -> None:
        """End W&B's process and threads, so that the next run begins anew and nothing is waited for at exit."""
        from wandb.sdk import wandb_setup
        from wandb.sdk.lib import module

        self._service = wandb_setup._singleton
        try:
            wandb_setup.teardown()
        except (Exception, SystemExit):  # its process is gone already
            self._kill_service()
            with suppress(Exception):
                self._service.asyncer.join()
        # What a run that could not end leaves.
        module.unset_globals()
        log = logging.getLogger("wandb")
        for handler in [handler for handler in log.handlers if isinstance(handler, logging.FileHandler)]:
            log.removeHandler(handler)
            with suppress(OSError):
                handler.close()

    def _kill_service(self) -> None:
        """Kill W&B's process, so that what waits for it ends with an error."""
        if process := self._process():
            process.kill()
            with suppress(subprocess.TimeoutExpired):
                process.wait(5)

    def _is_dead(self) -> bool:
        process = self._process()
        return process is not None and process.poll() is not None

    def _process(self) -> subprocess.Popen[bytes] | None:
        """W&B's process. There is no public way to it."""
        from wandb.sdk import wandb_setup

        service: Any = wandb_setup._singleton or self._service
        try:
            return service._connection._proc._process
        except AttributeError:
            return None


def _say(what: str) -> None:
    print(f"W&B: {what}", file=sys.stderr)


def _reason(error: BaseException) -> str:
    """The error in one line."""
    if isinstance(error, ValueError) and hasattr(error, "errors"):  # pydantic's
        details = error.errors()[0]
        return f"{'.'.join(map(str, details['loc'])).removeprefix('run_')}: {details['msg']}"
    first = str(error).strip().partition("\n")[0]
    return first[:200] if first and first != "<no message>" else type(error).__name__


def _step(values: dict[str, Any]) -> Any:
    return values.get(STEP)


def _sync(run: Any) -> str:
    """The command that sends what is stored of `run`."""
    return f"wandb sync {shlex.quote(os.path.dirname(run.dir))}"


def _earlier(folder: Path) -> str | None:
    """The id of the newest W&B run in `folder`."""
    found = folder.glob("wandb/*run-*/run-*.wandb")
    newest = max(found, key=lambda path: path.parent.name.removeprefix("offline-"), default=None)
    return newest.stem.removeprefix("run-") if newest else None


def _stored(path: Path) -> float:
    """How many logged lines a ``.wandb`` file holds; infinitely many in another version of the format.

    It is a LevelDB log: blocks of 32 KiB with protobuf records, in parts where they cross a block's end.
    """
    from wandb.proto.wandb_internal_pb2 import Record  # type: ignore[attr-defined]

    found, record = 0, b""
    with path.open("rb") as file:
        block = file.read(32768)
        if block and not block.startswith(b":W&B\xe1\xbe\x00"):
            return math.inf
        at = 7
        while block:
            while at + 7 <= len(block):
                length, kind = struct.unpack_from("<HB", block, at + 4)
                part = block[at + 7 : at + 7 + length]
                at += 7 + length
                record = part if kind in (1, 2) else record + part  # 1: whole, 2: first, 3: middle, 4: last
                if kind in (1, 4):
                    with suppress(Exception):  # it was cut off
                        found += Record.FromString(record).HasField("history")
            block, at = file.read(32768), 0
    return found
