"""Download a file with a known checksum from servers that may fail in any way.

The body stays in memory, where a corpus has to fit anyway, until its checksum has been verified, so that a killed
process leaves no partial file behind.
"""

from __future__ import annotations

import hashlib
import logging
import os
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from http.client import HTTPException
from pathlib import Path

import pooch
import requests
from tqdm import tqdm
from urllib3.exceptions import HTTPError

from charlm.errors import UsageError

SILENCE = 20.0  # seconds to wait for a connection, and for each next byte
WINDOW, LEAST = 30.0, 10_000  # give up on a server that sends fewer than LEAST bytes in WINDOW seconds
LARGEST = 2**30  # bytes after decompression, enough for enwik9
CHUNK = 8192

REASONS = (  # the first match counts
    (requests.exceptions.Timeout, "no response"),
    (requests.exceptions.TooManyRedirects, "too many redirects"),
    (requests.exceptions.ChunkedEncodingError, "the response is incomplete"),
    (requests.exceptions.ContentDecodingError, "the response is corrupt"),
    (requests.exceptions.ConnectionError, "the connection failed"),
)


class Unavailable(UsageError):
    """A corpus is not on this machine and could not be downloaded."""


class Failed(Exception):
    """Why a URL does not yield the file, in a few words."""


def shown(name: object) -> str:
    """`name` in a message: on one line and printable, whatever bytes it contains."""
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in str(name))


def fetch(filename: str, sha256: str, urls: Sequence[str], cache: Path) -> bytes:
    """The file with this checksum from the first of `urls` that has it. It is stored in `cache`.

    Raises UsageError for a file with another checksum, and `Unavailable` where no URL yields a file.
    """
    with storing(filename, cache):
        cache.mkdir(parents=True, exist_ok=True)  # fail before the download
    failures, refused = [], []
    for url in urls:
        try:
            data = get(url, filename)
        except Failed as error:
            failures.append(f"{shown(url)}: {error}")
            continue
        found = hashlib.sha256(data).hexdigest()
        if found == sha256:
            keep(data, filename, sha256, cache)
            return data
        refused.append(f"{shown(url)} has {found}")
    if refused:
        raise UsageError(f"{filename} was refused, its SHA-256 must be {sha256}: {'; '.join(refused)}")
    looked = f"it is not in CHARLM_DATA_DIR={shown(folder)}; " if (folder := os.environ.get("CHARLM_DATA_DIR")) else ""
    raise Unavailable(
        f"{looked}{filename} could not be downloaded ({'; '.join(failures) or 'no URL is given'}): "
        f"set CHARLM_DATA_DIR to a folder with the file, or use your own text with data=text data.path=FILE"
    )


def keep(data: bytes, filename: str, sha256: str, cache: Path) -> None:
    """Store a file atomically, as other processes may be storing the same one."""

    def write(url: str, file: str, _: object) -> None:
        Path(file).write_bytes(data)

    pooch.get_logger().setLevel(logging.WARNING)
    with storing(filename, cache):
        pooch.retrieve("", f"sha256:{sha256}", filename, cache, downloader=write)


@contextmanager
def storing(filename: str, cache: Path) -> Iterator[None]:
    """Turn an OSError into a UsageError."""
    try:
        yield
    except OSError as error:
        raise UsageError(f"{filename} cannot be stored in {shown(cache)}: {error.strerror or shown(error)}") from None


class Transfer(threading.Thread):
    """One request in its own thread, because only a thread can be abandoned while a server keeps it waiting.

    `body` is what has arrived so far, `total` the size that the server states, or 0.
    """

    def __init__(self, url: str) -> None:
        super().__init__(daemon=True)
        self.url, self.body, self.total = url, bytearray(), 0
        self.failure: Exception | None = None
        self.abandoned = False

    def run(self) -> None:
        """Fetch the body."""
        try:
            with requests.get(self.url, stream=True, timeout=SILENCE) as response:
                if response.status_code != requests.codes.ok:
                    raise Failed(f"status {response.status_code}")
                length = response.headers.get("Content-Length", "")
                self.total = int(length) if length.isdecimal() else 0
                for chunk in response.iter_content(CHUNK):
                    if self.abandoned:
                        return
                    self.body += chunk
                    if max(self.total, len(self.body)) > LARGEST:
                        raise Failed(f"more than {LARGEST:,} bytes")
        except Exception as error:
            self.failure = error


def get(url: str, label: str = "") -> bytes:
    """The body at `url`, with a progress bar named `label`. Raises Failed."""
    transfer = Transfer(url)
    transfer.start()
    try:
        # The bar is shown on a terminal only, and removed in the end.
        with tqdm(desc=label, unit="B", unit_scale=True, leave=False, disable=None) as bar:
            mark, before = time.monotonic(), 0
            while transfer.is_alive():
                transfer.join(0.1)
                bar.total = transfer.total or None
                bar.update(len(transfer.body) - bar.n)
                if transfer.is_alive() and time.monotonic() > mark + WINDOW:
                    if len(transfer.body) < before + LEAST:
                        raise Failed(f"fewer than {LEAST:,} bytes in {WINDOW:g} seconds")
                    mark, before = time.monotonic(), len(transfer.body)
    finally:
        transfer.abandoned = True
    if transfer.failure is None:
        return bytes(transfer.body)
    raise explained(transfer.failure) from None


def explained(error: Exception) -> Exception:
    """`Failed` where the URL or the server is to blame; any other error, a bug, as it is."""
    for kind, reason in REASONS:
        if isinstance(error, kind):
            return Failed(reason)
    # requests does not translate every error of the layers below; a malformed URL raises ValueError.
    blamed = (requests.exceptions.RequestException, HTTPError, HTTPException, OSError, ValueError)
    return Failed(type(error).__name__) if isinstance(error, blamed) else error
