"""How the command-line programs end: one clear sentence and a status, never a traceback."""

from __future__ import annotations

import errno
import io
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NoReturn

from charlm.errors import UsageError
from charlm.training.interrupt import Interrupted

DEBUG = bool(os.environ.get("HYDRA_FULL_ERROR"))  # the user's own wish, before this module sets it
LONGEST = 2000  # characters of a message
UNWRITABLE = {
    errno.EACCES,
    errno.EEXIST,
    errno.EISDIR,
    errno.ELOOP,
    errno.ENAMETOOLONG,
    errno.ENOSPC,
    errno.ENOTDIR,
    errno.EPERM,
    errno.EROFS,
}


def fail(message: str, status: int = 2) -> NoReturn:
    """Print one error to stderr and end the program."""
    end(f"error: {message}", status)


def end(message: str, status: int) -> NoReturn:
    """Print a line to stderr and end the program."""
    if len(message) > LONGEST:  # it quotes something endless
        message = f"{message[: LONGEST // 2]} … {message[-LONGEST // 2 :]}"
    print(message, file=sys.stderr)
    raise SystemExit(status)


@contextmanager
def exit_cleanly() -> Iterator[None]:
    """Turn mistakes into a message and status 2, an interrupt into status 130.

    A bug still shows its traceback. So does everything when the user set HYDRA_FULL_ERROR.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # a terminal that cannot show a character must not end a run
            stream.reconfigure(errors="replace")
    if DEBUG:
        yield
        return
    os.environ["HYDRA_FULL_ERROR"] = "1"  # let Hydra raise its errors, so that they end here
    try:
        yield
    except UsageError as error:
        fail(str(error))
    except KeyboardInterrupt:
        end("interrupted", 130)
    except Interrupted as interrupted:
        end("interrupted", 128 + interrupted.number)
    except Exception as error:
        # Imported here: this module is loaded by programs that do not use Hydra.
        from hydra.errors import HydraException
        from omegaconf.errors import OmegaConfBaseException

        if isinstance(error, HydraException | OmegaConfBaseException):  # some of them are OSErrors, too
            from charlm.run.suggest import explain

            if sentence := explain(error):
                fail(sentence)
            cause = f"\n{error.__cause__}" if isinstance(error.__cause__, OmegaConfBaseException) else ""
            fail(f"{error}{cause}")
        if isinstance(error, ValueError) and "Config group override" in str(error):  # as in logger=null
            fail(f"{error}: choose one by name, for example logger=none")
        if not isinstance(error, OSError) or error.errno not in UNWRITABLE:
            raise
        place = f"{error.filename}: " if error.filename is not None else ""
        fail(f"{place}{error.strerror}; choose another place or free this one")
