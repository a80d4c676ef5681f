"""W&B in its own thread: every wait for it has a time limit, and a failure costs one line in the terminal."""

from __future__ import annotations

import logging
import os
import queue
import shlex
import subprocess
import sys
import threading
from collections.abc import Callable
from contextlib import suppress
from typing import Any

INIT_SECONDS = 20  # for the server to accept a run, before it is logged offline
FINISH_SECONDS = 20  # for the server to take what is left at the end
PATIENCE = 5  # seconds for W&B to start before training starts without it
GIVE_UP = INIT_SECONDS + FINISH_SECONDS + 15  # seconds after training before W&B's process is killed
LINES = 10_000  # log lines that may wait for W&B
STEP = "trainer/global_step"  # Lightning's name for it


class WandbThread:
    """A W&B run in its own thread, with what Lightning's WandbLogger needs: `log`, and `finish` at the end.

    ``begin(offline)`` starts the run; if that fails, it is called again for an offline run. Only the first problem is
    reported, and logging continues for as long as W&B's process works.
    """

    def __init__(self, begin: Callable[[bool], Any]) -> None:
        self._begin = begin
        self._lines: queue.SimpleQueue[dict[str, Any] | None] = queue.SimpleQueue()
        self._exit_code = 1
        self._failed = self._given_up = False
        self.run: Any = None  # once it has started
        self._service: Any = None
        # W&B replaces the first two for good whenever its process starts. The third keeps its own log from printing a
        # traceback per line on a full disk.
        self._before = sys.exit, sys.excepthook, logging.raiseExceptions
        logging.raiseExceptions = False
        self._begun, self._ended = threading.Event(), threading.Event()
        self._thread = threading.Thread(target=self._work, name="charlm-wandb", daemon=True)
        self._thread.start()
        try:
            self._begun.wait(PATIENCE)
        except BaseException:  # the user interrupts, and needs no report
            self._failed = True
            self._end(0)
            raise

    def log(self, values: dict[str, Any]) -> None:
        """Queue `values` for logging."""
        if self._ended.is_set():
            return
        if self._lines.qsize() < LINES:
            self._lines.put(values)
        else:
            self.fail(f"it does not respond; logs from step {values.get(STEP)} on are missing there")

    def finish(self, exit_code: int) -> None:
        """Finish the run and end W&B's process, within little more than `GIVE_UP` seconds."""
        self._exit_code = exit_code
        self._end(GIVE_UP)

    def fail(self, what: str) -> None:
        """Report the problem `what`, if it is the first."""
        if not self._failed:
            self._failed = True
            say(what)

    def _end(self, seconds: float) -> None:
        self._lines.put(None)
        try:
            self._ended.wait(seconds)  # not the thread's join, which an interrupt confuses
        finally:
            if not self._ended.is_set():
                self._given_up = True
                self.fail("it does not finish; the last logs may be missing there")
                self._kill_service()
                self._ended.wait(5)
            self._thread.join(1 if self._ended.is_set() else 0)
            sys.exit, sys.excepthook, logging.raiseExceptions = self._before

    def _work(self) -> None:
        try:
            self.run = run = self._run()
            self._begun.set()
            self._serve(run)
        except BaseException as error:  # also SystemExit, which would end the thread silently
            more = " more" if self._begun.is_set() else ""
            self.fail(f"{reason(error)}; nothing{more} is logged there")
        finally:
            self._end_service()
            self._begun.set()
            self._ended.set()

    def _run(self) -> Any:
        """Start the run as configured, or else offline."""
        try:
            return self._begin(False)
        except Exception as error:
            if self._given_up:
                raise
            why = reason(error)
        self._end_service()
        try:
            run = self._begin(True)
        except Exception:
            raise RuntimeError(why) from None
        say(f"{why}; this run is logged offline; {sync_command(run)} uploads it later")
        return run

    def _serve(self, run: Any) -> None:
        """Log everything that is queued, then finish the run."""
        troubles: list[str] = []
        refused: set[frozenset[str]] = set()  # not retried: without a server, a table takes ten seconds to fail
        for values in iter(self._lines.get, None):
            try:
                if frozenset(values) not in refused:
                    run.log(values)
            except Exception as error:
                since = f"from step {values.get(STEP)} on"
                if self._is_dead():
                    self.fail(f"{reason(error)}; logs {since} are missing there")
                    return
                refused.add(frozenset(values))
                names = ", ".join(sorted(values.keys() - {STEP}))
                troubles.append(f"{reason(error)}; missing there: {names} {since}")
        try:
            run.finish(exit_code=self._exit_code)
        except TimeoutError:
            troubles.append(
                f"the server did not accept everything within {FINISH_SECONDS} s; {sync_command(run)} uploads it later"
            )
        except Exception as error:
            troubles.append(f"{reason(error)}; the end of this run is missing there")
        if troubles:
            self.fail("; ".join(troubles))

    def _end_service(self) -> None:
        """End W&B's process and threads, so that the next run starts fresh and the program's exit waits for nothing."""
        from wandb.sdk import wandb_setup
        from wandb.sdk.lib import module

        self._service = wandb_setup._singleton
        try:
            wandb_setup.teardown()
        except (Exception, SystemExit):  # its process is already gone
            self._kill_service()
            with suppress(Exception):
                self._service.asyncer.join()
        # Leftovers of a run that could not finish.
        module.unset_globals()
        log = logging.getLogger("wandb")
        for handler in [handler for handler in log.handlers if isinstance(handler, logging.FileHandler)]:
            log.removeHandler(handler)
            with suppress(OSError):
                handler.close()

    def _kill_service(self) -> None:
        """Kill W&B's process, so that whatever waits for it fails."""
        if process := self._process():
            process.kill()
            with suppress(subprocess.TimeoutExpired):
                process.wait(5)

    def _is_dead(self) -> bool:
        process = self._process()
        return process is not None and process.poll() is not None

    def _process(self) -> subprocess.Popen[bytes] | None:
        """W&B's process, for which there is no public API."""
        from wandb.sdk import wandb_setup

        service: Any = wandb_setup._singleton or self._service
        try:
            return service._connection._proc._process
        except AttributeError:
            return None


def say(what: str) -> None:
    """Print `what` to stderr."""
    print(f"W&B: {what}", file=sys.stderr)


def reason(error: BaseException) -> str:
    """The error in one line."""
    if isinstance(error, ValueError) and hasattr(error, "errors"):  # pydantic's
        details = error.errors()[0]
        return f"{'.'.join(map(str, details['loc'])).removeprefix('run_')}: {details['msg']}"
    first = str(error).strip().partition("\n")[0]
    return first[:200] if first and first != "<no message>" else type(error).__name__


def sync_command(run: Any) -> str:
    """The command that uploads the stored `run`."""
    return f"wandb sync {shlex.quote(os.path.dirname(run.dir))}"
