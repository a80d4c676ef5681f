"""What a job of a sweep and a trial of a search have in common: a log, and a record of how it ended."""

from __future__ import annotations

import itertools
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout, suppress
from pathlib import Path
from typing import Any

from charlm.errors import UsageError, first_line
from charlm.run.resume import holds_a_run
from charlm.sweeps.folder import JobRecord, SweepFolder
from charlm.training.interrupt import Interrupted


@contextmanager
def recorded(sweep: SweepFolder, record: JobRecord, *, afresh: bool) -> Iterator[Callable[[dict[str, Any]], None]]:
    """Keep the `record` of the job that runs in this context; yields what is told how far it is.

    Its output goes to ``train.log``. An error ends up in the record only; Interrupted is raised. The job may itself set
    another status than that it is finished. One that begins `afresh` gets an empty folder.
    """
    folder, started = sweep.path / record.folder, time.monotonic()

    def report(progress: dict[str, Any], *, durable: bool = False) -> None:
        for name, value in progress.items():
            setattr(record, name, value)
        with suppress(OSError):  # an observer
            sweep.write(record, durable=durable)

    report({"status": "running"}, durable=True)
    try:
        if afresh and holds_a_run(folder):
            set_aside(folder, sweep.path)
        folder.mkdir(parents=True, exist_ok=True)
        with output_to(folder / "train.log"):
            yield report
    except Interrupted:
        report({"status": "interrupted"}, durable=True)
        raise
    except Exception as error:
        sentence = str(error) if isinstance(error, UsageError) else f"{first_line(error)} (see its train.log)"
        report({"status": "failed", "error": sentence}, durable=True)
    else:
        status = "finished" if record.status == "running" else record.status
        seconds = max(time.monotonic() - started, record.seconds)
        report({"status": status, "left": 0.0, "seconds": seconds}, durable=True)


def set_aside(folder: Path, sweep: Path) -> None:
    """Rename the folder of a run that cannot be resumed: killed before its first checkpoint, or with other settings.

    Nothing is deleted. A folder outside the sweep is left alone; the new run will refuse it.
    """
    if sweep.resolve() in folder.resolve().parents:
        names = (folder.with_name(f"{folder.name}.old-{number}") for number in itertools.count(1))
        folder.rename(next(name for name in names if not name.exists()))


@contextmanager
def output_to(path: Path) -> Iterator[None]:
    """Append what is printed to the file at `path`, errors included."""
    log = path.open("a", encoding="utf-8", errors="replace", buffering=1)
    with log, redirect_stdout(log), redirect_stderr(log):
        try:
            yield
        except UsageError as error:
            print(f"error: {error}")
            raise
        except Exception:
            traceback.print_exc()
            raise
