"""Get a file whose checksum is known from the web, whatever the servers do.

What they send is kept in memory, where a corpus has to fit anyway, until it is known to be right: a
process that is killed meanwhile leaves no half file behind.
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
LARGEST = 2**30  # bytes, after decompression; enwik9 would fit
CHUNK = 8192

REASONS = (  # the first that fits
    (requests.exceptions.Timeout, "no answer"),
    (requests.exceptions.TooManyRedirects, "redirects without end"),
    (requests.exceptions.ChunkedEncodingError, "the answer breaks off"),
    (requests.exceptions.ContentDecodingError, "the answer is damaged"),
    (requests.exceptions.ConnectionError, "the connection failed"),
)


class Unavailable(UsageError):
    """A known corpus is not on this machine and could not be downloaded."""


class Failed(Exception):
    """Why an address does not give the file, in a few words."""


def shown(name: object) -> str:
    """A name as it can stand in a message: on one line and printable, whatever bytes are in it."""
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in str(name))


def fetch(filename: str, sha256: str, urls: Sequence[str], cache: Path) -> bytes:
    """The file with this checksum, from the first of `urls` that has it; kept in `cache` under its name.

    Raises `Unavailable` when there is no answer, UsageError when there are only wrong ones.
    """
    with storing(filename, cache):
        cache.mkdir(parents=True, exist_ok=True)  # where that cannot be, nothing need be downloaded
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
        f"{looked}{filename} could not be downloaded ({'; '.join(failures) or 'no address is given'}): "
        f"put the file into a folder and set CHARLM_DATA_DIR to it, or use your own text with "
        f"data=text data.path=FILE"
    )


def keep(data: bytes, filename: str, sha256: str, cache: Path) -> None:
    """Store a file whole or not at all, whoever else does the same at the same time."""

    def write(url: str, file: str, _: object) -> None:
        Path(file).write_bytes(data)

    pooch.get_logger().setLevel(logging.WARNING)
    with storing(filename, cache):
        pooch.retrieve("", f"sha256:{sha256}", filename, cache, downloader=write)


@contextmanager
def storing(filename: str, cache: Path) -> Iterator[None]:
    """Turn what the disk has against it into a UsageError."""
    try:
        yield
    except OSError as error:
        raise UsageError(f"{filename} cannot be stored in {shown(cache)}: {error.strerror or shown(error)}") from None


class Transfer(threading.Thread):
    """One request, in a thread of its own: only a thread can be left while a server makes it wait.

    `body` is what has come so far, `total` how much it is to be, if the server says so.
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
    """The body that `url` answers with; `label` stands beside the progress bar. Raises Failed."""
    transfer = Transfer(url)
    transfer.start()
    try:
        # No bar where nobody looks, and none left over: what follows is the header, or one line of error.
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
    """`error` as `Failed` where the address or the server is to blame; else, a bug, as it is."""
    for kind, reason in REASONS:
        if isinstance(error, kind):
            return Failed(reason)
    # What requests does not translate comes from the layers below it; ValueError for an impossible address.
    blamed = (requests.exceptions.RequestException, HTTPError, HTTPException, OSError, ValueError)
    return Failed(type(error).__name__) if isinstance(error, blamed) else error
