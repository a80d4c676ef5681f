"""What the main process of a sweep does: show all jobs in one table, stop them on Ctrl-C, and write the results."""

from __future__ import annotations

import os
import shlex
import sys
from collections.abc import Iterator
from concurrent.futures.process import BrokenProcessPool
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from types import FrameType
from typing import Any

from filelock import FileLock, Timeout
from hydra.experimental.callback import Callback
from omegaconf import DictConfig, OmegaConf

from charlm.checkpoint.paths import program, quoted
from charlm.cli import DEBUG, fail
from charlm.errors import UsageError, first_line
from charlm.output import counted, print_table
from charlm.run.suggest import explain
from charlm.sweeps import results
from charlm.sweeps.command import split
from charlm.sweeps.display import Display, new_console
from charlm.sweeps.folder import PROCESS, SEARCH, JobRecord, SweepFolder, this_process
from charlm.sweeps.launchers import each_on_its_own
from charlm.sweeps.planning import check_jobs, check_launcher, jobs, jobs_at_once, threads_each
from charlm.sweeps.tables import final_table, seeds_table
from charlm.training.interrupt import Interrupted, handled_by

session: Session | None = None  # of the sweep in this process


class Watch(Callback):
    """Tells Hydra to open a `Session` before the jobs of a multirun. It has no state, because Hydra pickles it."""

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        """Open the session. Ends the program if that is impossible: of an exception, Hydra would make a warning."""
        global session
        try:
            session = Session(config)
        except Exception as error:
            SweepFolder(Path(str(config.hydra.sweep.dir))).remove_if_new()
            if DEBUG:
                raise
            fail(str(error) if isinstance(error, UsageError) else explain(error) or first_line(error))


class Session:
    """A sweep while this process runs it.

    Raises UsageError if another process runs it, if its folder holds another one, or if a job's settings are invalid.
    """

    def __init__(self, config: DictConfig) -> None:
        self.sweep, self.signal = SweepFolder(Path(str(config.hydra.sweep.dir)).absolute()), 0
        self.shown_path = os.path.relpath(self.sweep.path)
        if "/" not in self.shown_path:
            self.shown_path = f"./{self.shown_path}"  # needs no quotes in an override
        self.again = f"python {program('train.py')} -m {shlex.quote(f'resume={quoted(self.shown_path)}')}"
        self.console = new_console()
        self.errors = sys.stderr  # jobs send their own to a file
        self.lock = FileLock(self.sweep.jobs / "lock", timeout=2)
        with ExitStack() as stack:
            with self.console.status("checking the settings of all jobs"):
                self.command = self._command(config)
            self.sweep.jobs.mkdir(parents=True, exist_ok=True)
            try:
                stack.enter_context(self.lock)
            except Timeout:
                raise UsageError(f"{self.shown_path} is run by another process: wait for it, or stop it") from None
            stack.enter_context(each_on_its_own(config.hydra.launcher, self.killed, self.sweep.stopping))
            # On other machines, jobs may begin in other folders.
            config.hydra.overrides.hydra.append(f"hydra.sweep.dir={quoted(str(self.sweep.path))}")
            self.sweep.write_command(self.command)
            self.sweep.go_on()
            for record in self.sweep.records().values():
                if record.status == "running":  # its process was killed
                    record.status = "interrupted"
                    self.sweep.write(record)
            differing = results.differing([results.settings_of(job) for job in self.command["jobs"]])
            self.display = Display(self.console, self.records, differing)
            os.environ[PROCESS] = this_process()
            stack.callback(os.environ.pop, PROCESS)
            self._watching = stack.enter_context(ExitStack())
            self._watching.enter_context(handled_by(self._note))
            self._watching.enter_context(self.display)
            self._open = stack.pop_all()

    def _command(self, config: DictConfig) -> dict[str, Any]:
        """The content of ``sweep.json``. Raises UsageError if the folder holds another sweep, or a job is invalid."""
        typed: Any = OmegaConf.to_container(config.hydra.overrides, resolve=False)
        made, earlier = jobs(config), self.sweep.command()
        if self.sweep.command(SEARCH) is not None:
            raise UsageError(f"{self.shown_path} holds a search: choose another hydra.sweep.dir")
        if earlier is not None and (earlier["overrides"], earlier["jobs"]) != (typed["task"], made):
            raise UsageError(
                f"{self.shown_path} holds another sweep ({' '.join(map(str, earlier['overrides']))}): choose another "
                f"hydra.sweep.dir, or resume it with {self.again}"
            )
        search = [override for override in typed["hydra"] if override.startswith("hydra.searchpath=")]
        check_jobs(str(config.hydra.job.config_name), search, made)
        check_launcher(config.hydra.launcher)
        at_once = jobs_at_once(config.hydra.launcher, len(made))
        threads = None if earlier is None else earlier["threads"]  # it decides about the last bits of the results
        return {
            "overrides": typed["task"],
            "hydra": typed["hydra"],
            "flags": split(sys.argv[1:])[0][1:],
            "jobs": made,
            "parallel": at_once,
            "threads": threads or threads_each(config.hydra.launcher, at_once),
            "process": this_process(),
            "ended": False,
        }

    def _note(self, number: int, frame: FrameType | None) -> None:
        """The first signal asks the jobs to stop, a second one stops the program."""
        if self.signal:
            raise KeyboardInterrupt
        self.signal = number
        self.sweep.stop(number)
        print("\nstopping the jobs after this step; interrupt again to stop at once", file=self.errors)

    def records(self) -> list[JobRecord]:
        """The records of all jobs; of those that have not begun, empty ones."""
        found = self.sweep.records()
        for number, overrides in enumerate(self.command["jobs"]):
            model = results.settings_of(overrides).get("model")
            found.setdefault(number, JobRecord(number, overrides, "", model=model))
        return [found[number] for number in sorted(found)]

    def killed(self, number: int, overrides: list[str], sentence: str) -> None:
        """Note that the process of a job is gone before the job ended."""
        record = self.sweep.read(number) or JobRecord(number, overrides, "")
        if record.status != "finished" and not self.sweep.stopping():
            record.status, record.error = "failed", sentence
            self.sweep.write(record)

    def described(self, record: JobRecord) -> str:
        """The settings in which a job differs from the others."""
        return results.described(record.overrides, self.display.names)

    def close(self) -> list[JobRecord]:
        """Stop watching, print and write the results, and release the sweep. Returns the records."""
        self._watching.close()
        records = self.records()
        for record in records:
            if record.status == "running":  # its process was killed
                record.status = "interrupted"
                with suppress(OSError):
                    self.sweep.write(record)
        self.display.say(records)
        if any(record.status != "waiting" for record in records):
            self._report(records)
        with suppress(OSError):
            complete = all(record.status == "finished" for record in records)
            self.sweep.write_command({**self.command, "ended": complete})
        self._open.close()
        return records

    def _report(self, records: list[JobRecord]) -> None:
        loss = results.loss_name(records)
        table = results.rows(records, loss)
        seeds = results.over_seeds(table, loss)
        self.console.print()
        print_table(self.console, final_table(table, loss, self.console.width))
        if seeds:
            self.console.print()
            print_table(self.console, seeds_table(seeds))
        try:
            results.write_results(self.sweep, table, {"jobs": table, "over_seeds": seeds})
        except OSError as error:
            print(f"warning: {self.shown_path} has no results: {error.strerror or error}", file=self.errors)
        else:
            text = f"\nresults   {os.path.join(self.shown_path, 'results.csv')}, .json and losses.png"
            self.console.print(text, markup=False, soft_wrap=True)


@contextmanager
def sweeping() -> Iterator[None]:
    """Close the session of a multirun after its jobs, however they end.

    Raises Interrupted for a sweep that was stopped, and UsageError if jobs failed.
    """
    global session
    broken = False
    try:
        yield
    except BrokenProcessPool:
        broken = True
    finally:
        ours, session = session, None
        if ours is not None:
            records = ours.close()
            if any(record.status in ("waiting", "interrupted") for record in records) and not broken:
                print(f"resume with\n  {ours.again}", file=sys.stderr)
    if ours is None:
        return
    if ours.signal:
        raise Interrupted(ours.signal)
    if broken:
        raise UsageError(
            "the process of a job was killed, perhaps because the memory was full: lower hydra.launcher.n_jobs, and "
            f"resume with {ours.again}"
        )
    if failed := [record for record in records if record.status == "failed"]:
        for record in failed:
            print(f"error: job {record.number} ({ours.described(record)}): {record.error}", file=sys.stderr)
        raise UsageError(f"{counted(len(failed), 'job')} failed; once that is fixed, resume with {ours.again}")
    if (number := ours.sweep.stopped_by()) is not None:  # a worker got a signal
        raise Interrupted(number)
    if left := [record for record in records if record.status != "finished"]:
        raise UsageError(f"{counted(len(left), 'job')} did not finish")
