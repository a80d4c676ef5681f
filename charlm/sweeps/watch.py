"""What the main process of a sweep does: show all jobs in one table, stop them on Ctrl-C, and write the results."""

from __future__ import annotations

import shlex
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

from filelock import FileLock, Timeout
from hydra import compose
from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.experimental.callback import Callback
from omegaconf import DictConfig, OmegaConf
from rich.console import Console, Group
from rich.live import Live
from rich.text import Text

from charlm.checkpoint.paths import quoted
from charlm.cli import fail, quick_imports
from charlm.errors import UsageError
from charlm.output import counted, duration, print_table
from charlm.sweeps import results
from charlm.sweeps.folder import JobRecord, SweepFolder
from charlm.training.interrupt import Interrupted

REFRESH = 0.5  # seconds between two looks at the jobs
ORDER = {"running": 0, "failed": 1, "interrupted": 2, "finished": 3, "waiting": 4}  # in the live table
session: Session | None = None  # of the sweep in this process


class Watch(Callback):
    """Tells Hydra to open a `Session` before the jobs of a multirun. It has no state, because Hydra pickles it."""

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        """Open the session. Ends the program if that is impossible."""
        global session
        try:
            session = Session(config)
        except UsageError as error:
            fail(str(error))


class Session:
    """A sweep while this process runs it.

    Raises UsageError if another process runs it, if its folder holds another one, or if a job's settings are invalid.
    """

    def __init__(self, config: DictConfig) -> None:
        self.sweep = SweepFolder(Path(str(config.hydra.sweep.dir)))
        typed = OmegaConf.to_container(config.hydra.overrides, resolve=False)
        assert isinstance(typed, dict)
        self.command = {"overrides": typed["task"], "hydra": typed["hydra"], "jobs": jobs(config), "ended": False}
        self._check()
        check_jobs(str(config.hydra.job.config_name), self.command["jobs"])
        self.lock = FileLock(self.sweep.jobs / "lock", timeout=0)
        self.sweep.jobs.mkdir(parents=True, exist_ok=True)
        try:
            self.lock.acquire()
        except Timeout:
            raise UsageError(f"{self.sweep.path} is run by another process: wait for it, or stop it") from None
        self.sweep.create(self.command)
        self.sweep.go_on()
        for record in self.sweep.records().values():
            if record.status == "running":  # when it was killed
                record.status = "interrupted"
                self.sweep.write(record)
        self.console = Console(file=sys.stdout, highlight=False, width=None if sys.stdout.isatty() else 120)
        self._said: dict[int, str] = {}
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._before: dict[int, Any] = {}
        if threading.current_thread() is threading.main_thread():
            numbers = [signal.SIGINT, signal.SIGTERM, getattr(signal, "SIGHUP", signal.SIGTERM)]
            numbers = [number for number in numbers if signal.getsignal(number) != signal.SIG_IGN]
            self._before = {number: signal.signal(number, self._note) for number in numbers}
        self._thread.start()

    def _check(self) -> None:
        """Raise UsageError if the folder holds another sweep."""
        earlier = self.sweep.command()
        if earlier is not None and earlier["overrides"] != self.command["overrides"]:
            raise UsageError(
                f"{self.sweep.path} holds another sweep ({' '.join(map(str, earlier['overrides']))}): choose another "
                f"hydra.sweep.dir, or go on with python train.py -m resume={self.sweep.path}"
            )

    def _note(self, number: int, frame: FrameType | None) -> None:
        """The first signal asks the jobs to stop, a second one stops the program."""
        if self.sweep.stopped_by() is not None:
            raise KeyboardInterrupt
        self.sweep.stop(number)
        print("\nstopping the jobs after this step; interrupt again to stop at once", file=sys.__stderr__)

    def records(self) -> list[JobRecord]:
        """The records of all jobs; of those that have not begun, empty ones."""
        found = self.sweep.records()
        for number, overrides in enumerate(self.command["jobs"]):
            model = results.settings_of(overrides).get("model")
            found.setdefault(number, JobRecord(number, overrides, "", model=model))
        return [found[number] for number in sorted(found)]

    def described(self, record: JobRecord) -> str:
        """The settings in which a job differs from the others."""
        return results.described(record.overrides, self.command["jobs"])

    def _watch(self) -> None:
        if not self.console.is_terminal:
            while not self._end.wait(REFRESH):
                self._say(self.records())
            return
        # Its own redirection would end up in the log of a job.
        live = Live(
            console=self.console, auto_refresh=False, transient=True, redirect_stdout=False, redirect_stderr=False
        )
        with live:
            while not self._end.wait(REFRESH):
                live.update(live_table(self.records(), self.console.height - 3), refresh=True)

    def _say(self, records: list[JobRecord]) -> None:
        """One line for every job that began or ended."""
        for record in records:
            if record.status == self._said.get(record.number, "waiting"):
                continue
            self._said[record.number] = record.status
            line = f"job {record.number} {record.status}"
            if record.status == "finished" and record.nats is not None:
                line += f", {record.nats:.4f} nats/char, {counted(record.epoch, 'epoch')}, {duration(record.seconds)}"
            if record.error:
                line += f": {record.error}"
            line = f"{line}   {self.described(record)}".rstrip()
            self.console.print(line, markup=False, soft_wrap=True)

    def close(self) -> list[JobRecord]:
        """Stop watching, write and print the results, and release the sweep. Returns the records."""
        self._end.set()
        self._thread.join()
        for number, handler in self._before.items():
            signal.signal(number, handler)
        records = self.records()
        if not self.console.is_terminal:
            self._say(records)
        begun = [record for record in records if record.status != "waiting"]
        complete = len(begun) == len(records) and all(r.status in ("finished", "failed") for r in records)
        self.sweep.create({**self.command, "ended": complete})
        if begun:
            loss = results.loss_name(records)
            table = results.rows(records, loss)
            seeds = results.over_seeds(table, loss)
            results.write_results(self.sweep, table, seeds)
            self.console.print()
            print_table(self.console, results.as_table(table, loss))
            if seeds:
                self.console.print()
                print_table(self.console, results.as_seeds_table(seeds))
            self.console.print(f"\nresults   {self.sweep.path / 'results.csv'}, .json and losses.png", soft_wrap=True)
        self.lock.release()
        return records


@contextmanager
def sweeping() -> Iterator[None]:
    """Close the session of a multirun after its jobs, however they end.

    Raises Interrupted for a sweep that was stopped, and UsageError if jobs failed.
    """
    try:
        yield
    finally:
        if session is not None:
            records = session.close()
    if session is None:
        return
    again = f"go on with\n  python train.py -m {shlex.quote(f'resume={quoted(str(session.sweep.path))}')}"
    if (number := session.sweep.stopped_by()) is not None:
        print(again, file=sys.stderr)
        raise Interrupted(number)
    if failed := [record for record in records if record.status == "failed"]:
        for record in failed:
            print(f"error: job {record.number} ({session.described(record)}): {record.error}", file=sys.stderr)
        raise UsageError(f"{counted(len(failed), 'job')} failed; once that is mended, {again}")


def jobs(config: DictConfig) -> list[list[str]]:
    """The overrides of every job, as Hydra's own sweeper makes them; none for another sweeper, which decides later."""
    if not str(config.hydra.sweeper._target_).endswith(".BasicSweeper"):
        return []
    arguments = [f"{name}={value}" for name, value in (config.hydra.sweeper.params or {}).items()]
    typed: Any = OmegaConf.to_container(config.hydra.overrides.task, resolve=False)
    parsed = OverridesParser.create().parse_overrides([*arguments, *typed])
    (batch,) = BasicSweeper.split_arguments(parsed, None)
    return batch


def check_jobs(name: str, jobs: list[list[str]]) -> None:
    """Raise UsageError if the settings of a job are invalid: at once, not after the jobs before it."""
    with quick_imports():  # PyTorch is slow to load
        from charlm.run.compose import checked_settings

    for number, overrides in enumerate(jobs):
        try:
            checked_settings(compose(name, overrides))
        except UsageError as error:
            raise UsageError(f"job {number} of {len(jobs)} ({results.described(overrides, jobs)}): {error}") from None


def live_table(records: list[JobRecord], height: int) -> Group:
    """The jobs that run, then those that ended, as many as fit, and how many there are of each kind."""
    begun = [record for record in records if record.status != "waiting"]
    latest = sorted(begun, key=lambda record: record.number, reverse=True)
    shown = sorted(latest, key=lambda record: ORDER[record.status])[: max(height - 2, 1)]
    names = results.differing([results.settings_of(record.overrides) for record in records])
    made = results.Table(box=None, pad_edge=False, header_style="bold cyan")
    for name in ("job", *names, "epoch", "best loss", "left"):
        made.add_column(name, justify="left" if name in names else "right", no_wrap=True)
    for record in shown:
        settings = results.settings_of(record.overrides)
        left = record.status if record.status != "running" else "" if record.left is None else duration(record.left)
        made.add_row(
            str(record.number),
            *(settings.get(name, "") for name in names),
            f"{record.epoch}/{record.epochs or '?'}",
            "" if record.nats is None else f"{record.nats:.4f}",
            left,
        )
    counts = {status: sum(record.status == status for record in records) for status in ORDER}
    line = ", ".join(f"{count} {status}" for status, count in counts.items() if count)
    return Group(made, Text(line, style="dim"))
