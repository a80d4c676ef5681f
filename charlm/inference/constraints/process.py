"""Builds the automaton of a regular expression in a process of its own, because nothing else can be stopped.

A short expression may need an automaton of any size, and the library builds it in one call that has no limit. This
file is therefore run as a program by `charlm.inference.constraints.byte_automaton`, which stops it after a while; where
the system allows it, the process also limits its own memory. It imports nothing of charlm, so that it starts at once.
"""

from __future__ import annotations

import json
import sys
from array import array
from contextlib import suppress
from typing import Any

MEMORY = 2**30  # bytes
BOUNDARY, START = r"\b", "^a"  # what the library supports nowhere, and at no place but the beginning


def limit_memory() -> None:
    """Make this process fail where it would need more than `MEMORY`. Not every system can do this."""
    with suppress(ImportError, OSError, ValueError):
        import resource

        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))


def build(request: dict[str, Any]) -> tuple[dict[str, Any], array[int]]:
    """The header and the transitions, of the bytes that are asked for.

    All other bytes are one symbol more: the library refuses an automaton with a state that none of its symbols leaves.

    A match ends with the character `end`. Without it, outlines-core 0.2.14 loses what follows a match: it reads a(bc)?
    as a, because the automaton underneath reports a match one byte late, and so in a state that is none.
    """
    from outlines_core import Index, Vocabulary
    from outlines_core.json_schema import build_regex_from_schema

    asked = {byte: symbol for symbol, byte in enumerate(request["bytes"])}
    others, end = len(asked), len(asked) + 1
    symbols = Vocabulary(end, {bytes([byte]): [asked.get(byte, others)] for byte in range(256)})
    transitions = array("i")
    try:
        if "schema" in request:
            pattern = build_regex_from_schema(request["schema"])
        elif not understood(pattern := request["pattern"], symbols):
            return {"problem": "invalid"}, transitions
        index = Index(rf"(?:{pattern})\x{{{request['end']:x}}}", symbols)
        found = index.get_transitions()
    except ValueError as error:
        unsupported = str(error) in (complaint(BOUNDARY, symbols), complaint(START, symbols))
        return {"problem": "invalid" if unsupported else "unsatisfiable"}, transitions
    except MemoryError:
        return {"problem": "large"}, transitions
    if len(found) * (others + 1) > request["cells"]:
        return {"problem": "large"}, transitions
    number = {state: n for n, state in enumerate(dict.fromkeys([index.get_initial_state(), *found]))}
    for state, leaving in found.items():
        for symbol, target in leaving.items():
            if symbol < others:
                transitions.extend((number[state], symbol, number.setdefault(target, len(number))))
    ends = [number[state] for state in index.get_final_states() if state in number]
    return {"states": len(number), "start": 0, "ends": ends}, transitions


def complaint(pattern: str, symbols: Any) -> str | None:
    """What the library says about a pattern that it refuses. The words differ from release to release."""
    from outlines_core import Index

    try:
        Index(pattern, symbols)
    except ValueError as error:
        return str(error)
    return None


def understood(pattern: str, symbols: Any) -> bool:
    """Whether `pattern` is a regular expression by itself; ``a)(b`` is none, but would be one in parentheses.

    Of a pattern with a boundary no automaton is built, so that this takes no time.
    """
    return complaint(f"{BOUNDARY}|{pattern}", symbols) == complaint(BOUNDARY, symbols)


def main() -> None:
    """Answer one request."""
    limit_memory()
    header, transitions = build(json.load(sys.stdin.buffer))
    sys.stdout.buffer.write(json.dumps(header).encode() + b"\n" + transitions.tobytes())


if __name__ == "__main__":
    main()
