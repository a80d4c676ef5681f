"""How the command-line programs end: with one clear sentence and an exit status instead of a traceback."""

from __future__ import annotations

import argparse
import atexit
import difflib
import errno
import functools
import gc
import io
import os
import re
import shlex
import signal
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn, TypeVar

from charlm.errors import OptionError, UsageError
from charlm.options import Options
from charlm.training.interrupt import Interrupted

Chosen = TypeVar("Chosen", bound=Options)

DEBUG = bool(os.environ.get("HYDRA_FULL_ERROR"))  # what the user asked for, before this module sets it
GONE = {errno.EPIPE, errno.EIO}  # a pipe or a terminal that was closed
LONGEST = 2000  # characters in a message
UNWRITABLE = {
    errno.EACCES,
    errno.EEXIST,
    errno.EISDIR,
    errno.ELOOP,
    errno.ENAMETOOLONG,
    errno.ENOENT,
    errno.ENOSPC,
    errno.ENOTDIR,
    errno.EPERM,
    errno.EROFS,
}


def fail(message: str, status: int = 2) -> NoReturn:
    """Print an error to stderr and exit."""
    end(f"error: {message}", status)


def end(message: str, status: int) -> NoReturn:
    """Print a line to stderr and exit."""
    if len(message) > LONGEST:  # it quotes a very long value
        message = f"{message[: LONGEST // 2]} … {message[-LONGEST // 2 :]}"
    print(message, file=sys.stderr)
    raise SystemExit(status)


LIST = "--help lists the options"


class Parser(argparse.ArgumentParser):
    """A parser whose errors are one sentence like all others."""

    def error(self, message: str) -> NoReturn:
        """Raise UsageError, with the nearest option or the likely one for what is not an option."""
        if found := re.fullmatch(r"unrecognized arguments: (.*)", message, re.DOTALL):
            extra = found[1].strip()
            flag = next((word for word in extra.split() if word.startswith("-")), None)
            if flag is not None:
                close = difflib.get_close_matches(flag.partition("=")[0], self._option_string_actions, 1, cutoff=0.75)
                raise UsageError(f"there is no option {flag}: {f'did you mean {close[0]}?' if close else LIST}")
            if "--prompt" not in self._option_string_actions:
                raise UsageError(f"{extra!r} belongs to no option: {LIST}")
            if Path(extra).exists() and extra:
                raise UsageError(f"for a model, write --checkpoint {shlex.quote(extra)}")
            raise UsageError(
                f"{extra!r} belongs to no option: a prompt is one argument in quotes, as in --prompt 'a text'"
            )
        swallowed = re.fullmatch(r"argument (--[\w-]+): .*?'([^']+)'.*", message, re.DOTALL)
        if swallowed and Path(swallowed[2]).exists():
            raise UsageError(f"{swallowed[1]} takes {swallowed[2]} for its value: write {swallowed[2]} before it")
        raise UsageError(f"{message.removeprefix('argument ')}; {LIST}")


def add_options(
    parser: argparse._ActionsContainer, options: type[Options], leave_out: Sequence[str] = (), unset: bool = False
) -> None:
    """An argument for each field of `options`. A choice that may be left out has its first value when it has none.

    With `unset`, arguments that are not given are None, so that a program can tell; `options_of` fills them in.
    """
    for name, described in options.model_json_schema()["properties"].items():
        if name in leave_out:
            continue
        flag = f"--{name.replace('_', '-')}"
        kinds = [kind for kind in described.get("anyOf", [described]) if "null" not in kind.values()]
        text, default = " ".join(described["description"].split()), described["default"]
        if described.get("type") == "boolean":
            parser.add_argument(flag, action="store_true", default=None if unset else default, help=text)
            continue
        more: dict[str, Any] = {"type": str, "metavar": "TEXT"}
        if "enum" in kinds[0]:
            more = {"choices": kinds[0]["enum"]}
            if default is None and not unset:
                more |= {"nargs": "?", "const": kinds[0]["enum"][0]}
        elif kinds[0].get("type") == "array":
            more |= {"action": "append"}
        elif any(kind.get("type") in ("number", "integer") for kind in kinds):
            words = [kind["const"] for kind in kinds if "const" in kind]
            more = {"type": functools.partial(number, words=words), "metavar": "|".join(["N", *words])}
        text += "" if default is None or default == [] else f" Default: {default}."
        parser.add_argument(flag, default=None if unset else default, help=text.replace("%", "%%"), **more)


def number(text: str, words: Sequence[str] = ()) -> int | float | str:
    """The number in `text`, or one of `words`."""
    if text in words:
        return text
    try:
        return int(text) if text.lstrip("+-").isdecimal() else float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} must be a number{''.join(f' or {w}' for w in words)}") from None


def options_of(arguments: argparse.Namespace, options: type[Chosen]) -> Chosen:
    """The fields of `options` on the command line. Raises OptionError for a value that is out of range."""
    try:
        given = {name: getattr(arguments, name, None) for name in options.model_fields}
        return options(**{name: value for name, value in given.items() if value is not None})
    except OptionError as error:
        name = error.name.partition(".")[0].replace("_", "-")  # stop.0 is a value of --stop
        raise OptionError(f"--{name}", error.problem, error.value) from None


@contextmanager
def quick_imports() -> Iterator[None]:
    """Import without garbage collection, which takes a third of the time that PyTorch and Lightning need to load."""
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


class _Forgiving(io.FileIO):
    """A stream that drops what cannot be written: nobody reads it any more, or the disk of the log file is full."""

    def write(self, data: Any) -> int:
        try:
            return super().write(data) or 0
        except OSError:
            return len(data)


@contextmanager
def forgiving_output() -> Iterator[None]:
    """Go on, silently, when nobody reads stdout or stderr any more, as in ``train.py | head`` or after a SIGHUP."""
    before = sys.stdout, sys.stderr
    sys.stdout, sys.stderr = (forgiving(stream) for stream in before)
    try:
        yield
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        sys.stdout, sys.stderr = before


def forgiving(stream: Any) -> Any:
    """A `_Forgiving` stream to where `stream` leads; to nowhere if that is closed, `stream` itself if it is no file."""
    if stream is None:
        return open(os.devnull, "w")
    try:
        stream.flush()
        raw = _Forgiving(stream.fileno(), "w", closefd=False)
    except OSError:  # io.UnsupportedOperation is one
        return stream
    options = {"encoding": stream.encoding, "errors": stream.errors}
    lines = stream.line_buffering or stream.write_through  # the latter with PYTHONUNBUFFERED
    return io.TextIOWrapper(io.BufferedWriter(raw), **options, line_buffering=lines)


@contextmanager
def quiet_pipes() -> Iterator[None]:
    """End silently if nobody reads stdout any more, as in ``sample.py --help | head``."""
    try:
        yield
    finally:
        try:
            if sys.stdout is not None:
                sys.stdout.flush()
        except OSError as error:
            if error.errno not in GONE:
                raise
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # Python flushes it again at exit


@contextmanager
def exit_cleanly() -> Iterator[None]:
    """Exit with a message and status 2 for a user's mistake, and with 128 + the signal's number for an interrupt.

    A bug still shows its traceback, and so does every error if the user set HYDRA_FULL_ERROR.
    """
    atexit.register(signal.signal, signal.SIGINT, signal.SIG_DFL)  # no traceback for a Ctrl-C while Python exits
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # a character that the terminal cannot show must not end a run
            stream.reconfigure(errors="replace")
    with quiet_pipes():
        with sentences():
            yield


@contextmanager
def sentences() -> Iterator[None]:
    """What `exit_cleanly` does with errors."""
    if DEBUG:
        yield
        return
    os.environ["HYDRA_FULL_ERROR"] = "1"  # makes Hydra raise its errors, so that they are handled here
    try:
        yield
    except UsageError as error:
        fail(str(error))
    except KeyboardInterrupt:
        end("interrupted", 130)
    except Interrupted as interrupted:
        end("interrupted", 128 + interrupted.number)
    except Exception as error:
        # Imported here because programs that do not use Hydra load this module, too.
        from hydra.errors import HydraException
        from omegaconf.errors import OmegaConfBaseException

        if isinstance(error, HydraException | OmegaConfBaseException):  # before OSError, which some of them are
            from charlm.run.suggest import explain

            if sentence := explain(error):
                fail(sentence)
            cause = f"\n{error.__cause__}" if isinstance(error.__cause__, OmegaConfBaseException) else ""
            fail(f"{error}{cause}")
        if isinstance(error, ValueError) and "Config group override" in str(error):  # as in logger=null
            fail(f"{error}: choose one by name, for example logger=none")
        if not isinstance(error, OSError) or error.errno not in UNWRITABLE:
            raise
        path = f"{error.filename}: " if error.filename is not None else ""
        fail(f"{path}{error.strerror}; choose another path, or fix this one")
