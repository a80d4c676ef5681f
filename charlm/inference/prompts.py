"""Prompts and schemas from files and from stdin."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from charlm.errors import UsageError
from charlm.inference.constraints.schema import parse_schema


def read_text(option: str, path: str) -> str:
    """The text of a file in UTF-8, ``-`` for stdin. Raises UsageError that names `option`."""
    where = f"{option} {path}"
    if path == "-" and sys.stdin is None:
        raise UsageError(f"{where}: stdin is closed; give a text file")
    try:
        content = sys.stdin.buffer.read() if path == "-" else Path(path).read_bytes()
    except OSError as error:
        raise UsageError(f"{where}: {error.strerror}; give a text file, or - for stdin") from None
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UsageError(f"{where} is not in UTF-8 (byte {error.start}): save it in that encoding") from None


def read_prompt(path: str) -> str:
    """A prompt from a file, without the line break that ends its last line."""
    text = read_text("--prompt-file", path).replace("\r\n", "\n").removesuffix("\n")
    if not text:
        raise UsageError(f"--prompt-file {path} is empty: to start from nothing, leave it out")
    return text


def read_prompts(path: str) -> list[str]:
    """The lines of a file that are not empty."""
    prompts = [line.removesuffix("\r") for line in read_text("--prompts", path).split("\n")]
    prompts = [prompt for prompt in prompts if prompt]
    if not prompts:
        raise UsageError(f"--prompts {path} has no line with a prompt")
    return prompts


def read_schema(path: str) -> dict[str, Any]:
    """A JSON schema from a file. Raises UsageError for a file without one."""
    return parse_schema(read_text("--json-schema", path), f"--json-schema {path}")
