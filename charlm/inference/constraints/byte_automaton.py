"""The library's automaton of a regular expression or JSON schema, over the bytes of UTF-8.

The library is outlines-core, whose automaton is complete before the first character is drawn, so that the distance from
every state to an end is known. llguidance finds its states on the way and cannot tell this distance, and takes 5 to 11
µs a character; interegular has had no release since January 2024, and has neither schemas nor a limit.
"""

from __future__ import annotations

import importlib.util
import itertools
import json
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from charlm.errors import UsageError

PROGRAM = Path(__file__).with_name("process.py")
SECONDS = 10.0  # to build an automaton; what is of use takes less than one
CELLS = 2**24  # states times symbols
PRINTABLE = [*range(0x21, 0x7F), *range(0x21), *range(0x7F, 0x100)]  # bytes, in the order in which to try them


class Refused(Exception):
    """Why there is no automaton: invalid, unsatisfiable or large."""


class ByteAutomaton:
    """What the library builds, over the UTF-8 of texts of `characters`, or of any text.

    `table` (S + 1, bytes) has S for no state, `columns` (256) are those of the bytes, or -1, `ends` (S + 1) tells where
    a text may end.
    """

    def __init__(self, source: Mapping[str, str], characters: str | None = None) -> None:
        """`source` is {pattern: text} or {schema: text}. Raises Refused, and UsageError without the library."""
        known = set(characters or "")
        end = next(c for c in map(chr, itertools.count()) if c not in known)  # ends a text, so it is in none
        symbols = PRINTABLE if characters is None else sorted(set((characters + end).encode()))
        header, transitions = _build({**source, "end": ord(end), "bytes": symbols, "cells": CELLS})
        self.dead, self.start = header["states"], header["start"]
        self.table = np.full((self.dead + 1, len(symbols)), self.dead, np.int32)
        self.table[transitions[:, 0], transitions[:, 1]] = transitions[:, 2]
        self.columns = np.full(256, -1, np.int64)
        self.columns[symbols] = np.arange(len(symbols))
        after = np.arange(self.dead + 1)
        for byte in end.encode():
            after = self.table[after, self.columns[byte]]
        self.ends = np.isin(after, header["ends"])

    def shortest(self) -> str | None:
        """One of the shortest texts that match."""
        before: dict[int, tuple[int, int]] = {self.start: (-1, -1)}
        queue = [self.start]
        for state in queue:
            if self.ends[state]:
                text = bytearray()
                while state != self.start:
                    state, byte = before[state]
                    text.append(byte)
                return text[::-1].decode(errors="replace")
            for byte in PRINTABLE:
                if (column := self.columns[byte]) >= 0:
                    target = int(self.table[state, column])
                    if target != self.dead and target not in before:
                        before[target] = (state, byte)
                        queue.append(target)
        return None


def _build(request: dict) -> tuple[dict, NDArray[np.int32]]:
    """The answer of `PROGRAM`: its header, and transitions (N, 3)."""
    if importlib.util.find_spec("outlines_core") is None:
        raise UsageError('regex and json_schema need the package outlines-core: pip install -e ".[constrain]"')
    command = [sys.executable, "-P", str(PROGRAM)]  # -P: this folder's names must not hide Python's own
    try:
        done = subprocess.run(command, input=json.dumps(request).encode(), capture_output=True, timeout=SECONDS)
    except subprocess.TimeoutExpired:
        raise Refused("large") from None
    if done.returncode:
        if b"Traceback" in done.stderr and b"MemoryError" not in done.stderr:
            raise RuntimeError(done.stderr.decode(errors="replace"))
        raise Refused("large")  # Rust ends the process where memory is short
    line, _, numbers = done.stdout.partition(b"\n")
    header = json.loads(line)
    if "problem" in header:
        raise Refused(header["problem"])
    return header, np.frombuffer(numbers, np.int32).reshape(-1, 3)
