r"""What a continuation may be: of some characters only, all of a regular expression, or JSON of a schema.

At every step, the characters are allowed after which a match can still end within the remaining length. So the texts
that can be written within a length are the matches that are no longer, except those that can be continued to another
such match: a text ends only where nothing can follow, or where its length is used up. ``[a-z]+`` goes on until then.

Regular expressions are those of Rust's regex crate, and a match is the whole continuation. Supported are alternatives,
groups, repetitions, classes such as ``\d``, ``\w``, ``\s``, ``\p{Greek}`` or ``[a-z&&[^aeiou]]``, and flags such as
``(?i)``. Not supported: look-around, back-references, and Unicode's word boundaries. ``\d`` and ``\w`` are Unicode's;
``.`` is any character but a line feed, and with ``(?s)`` any. A ``^`` at the beginning and a ``$`` at the end say
nothing. The expression is about what the model writes, which is in lower case where the model knows nothing else.

JSON is written with the properties in the order of the schema, and with at most single spaces between its parts.
"""

from __future__ import annotations

import json
import re
import warnings
from collections.abc import Mapping
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from charlm.errors import OptionError
from charlm.inference.constraints.automaton import Automaton, over_characters
from charlm.inference.constraints.byte_automaton import ByteAutomaton, Refused
from charlm.inference.constraints.schema import Reduction, parse_schema
from charlm.text.vocab import Vocab, describe


class Constraint(Protocol):
    """What a continuation may be, character by character. States are plain values, never changed. V: vocabulary."""

    start: Any
    """The state before the first character."""
    shortest: int
    """Characters of the shortest continuation."""

    def allowed(self, state: Any, remaining: int) -> NDArray[np.bool_]:
        """Ids after which a match can still end within `remaining` characters, which count this one, (V,).

        All False where the text has to end. That is possible wherever each character before was an allowed one, and the
        length was at least `shortest`. Not to be written to.
        """

    def advance(self, state: Any, id: int) -> Any:
        """The state after an allowed id."""

    def may_end(self, state: Any) -> bool:
        """Whether the text so far is a match."""


class Charset:
    """Only some characters; any text of them is a match. See `charset`."""

    start, shortest = 0, 0

    def __init__(self, mask: NDArray[np.bool_]) -> None:
        self._some, self._none = mask.copy(), np.zeros_like(mask)
        self._some.setflags(write=False)
        self._none.setflags(write=False)

    def allowed(self, state: int, remaining: int) -> NDArray[np.bool_]:
        """See `Constraint`."""
        return self._some if remaining > 0 else self._none

    def advance(self, state: int, id: int) -> int:
        """See `Constraint`. Raises ValueError for an id that is not allowed."""
        if not self._some[id]:
            raise ValueError(f"id {id} is not in the set")
        return state

    def may_end(self, state: int) -> bool:
        """See `Constraint`."""
        return True


def charset(vocab: Vocab, characters: str) -> Charset:
    """Any text of these characters. Raises OptionError for none, and for those that the model never saw."""
    mask = np.zeros(len(vocab), np.bool_)
    mask[vocab.encode(_within(vocab, characters), "error")] = True
    return Charset(mask)


def regex(vocab: Vocab, pattern: str, within: str | None = None) -> Automaton:
    """Any text that matches `pattern` as a whole, of the characters `within`, which are usually all that there are.

    Raises OptionError for what is no regular expression, matches nothing that the model can write, or is too much.
    """
    usable = _usable(vocab, within)
    bare = pattern.removeprefix("^")
    if bare.endswith("$") and (len(bare) - len(bare[:-1].rstrip("\\"))) % 2:
        bare = bare[:-1]
    try:
        _check_encodable(pattern)
        return _automaton("regex", {"pattern": bare}, vocab, usable, pattern)
    except Refused as refused:
        if str(refused) == "invalid":
            raise OptionError("regex", _mistake(pattern), pattern) from None
        if str(refused) == "unsatisfiable":
            raise OptionError(
                "regex", "matches no text: leave out any $, the whole continuation has to match anyway", pattern
            ) from None
        raise OptionError("regex", f"needs too large an automaton: {_SMALLER}", pattern) from None


_SMALLER = r"repeat less, or write [a-z] for \w"


def json_schema(vocab: Vocab, schema: Mapping[str, Any] | str, within: str | None = None) -> Automaton:
    """JSON that satisfies `schema`, a dict or JSON itself, of the characters `within`.

    Supported are `type` (also a list), `enum`, `const`, `anyOf`, `$ref` within the schema without recursion,
    `properties` (which are all that is written), `required`, `additionalProperties` without `properties`, `items`,
    `prefixItems`, `minItems`, `maxItems`, `minLength`, `maxLength`, and the format uuid. Raises OptionError for others,
    and for a schema of which the model can write nothing, or that is too large.
    """
    usable = _usable(vocab, within)
    try:
        json.dumps(schema, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise OptionError("json_schema", f"is no JSON: {error}") from None
    reduced = json.dumps(Reduction(parse_schema(schema) if isinstance(schema, str) else schema).schema)
    try:
        return _automaton("json_schema", {"schema": reduced}, vocab, usable)
    except Refused as refused:
        if str(refused) == "large":
            raise OptionError("json_schema", "needs too large an automaton: ask for less, or shorter parts") from None
        raise OptionError("json_schema", "has something that outlines-core cannot write") from None


def check_length(constraint: Constraint, length: int) -> None:
    """Raise OptionError where `length` characters are too few for any match."""
    if constraint.shortest > length:
        raise OptionError("length", f"is too short for any match: the shortest needs {constraint.shortest}", length)


def _usable(vocab: Vocab, within: str | None) -> str:
    """The characters to build from: those of the vocabulary that a text can have."""
    characters = vocab.chars if within is None else _within(vocab, within)
    return "".join(c for c in characters if not "\ud800" <= c <= "\udfff")


def _within(vocab: Vocab, characters: str) -> str:
    """The characters of a set, sorted. Raises OptionError."""
    if not characters:
        raise OptionError("charset", "must have at least one character", characters)
    if missing := [c for c, known in zip(characters, vocab.knows(characters), strict=True) if not known]:
        raise OptionError("charset", f"has what the model never saw, leave it out: {describe(missing)}")
    return "".join(sorted(set(characters)))


def _automaton(
    option: str, source: Mapping[str, str], vocab: Vocab, usable: str, value: str | None = None
) -> Automaton:
    """The automaton over `usable` characters. Raises Refused, and OptionError where these have no match."""
    quoted = () if value is None else (value,)
    found = over_characters(ByteAutomaton(source, usable), vocab, usable) if usable else None
    if found is None or found.shortest < 0:
        raise OptionError(option, _nothing(source, usable), *quoted)
    if not found.has_text:
        raise OptionError(option, "matches only the empty text", *quoted)
    return found


def _nothing(source: Mapping[str, str], usable: str) -> str:
    """Why nothing matches. Raises Refused where that is not the vocabulary's fault."""
    example = ByteAutomaton(source).shortest()
    if example is None:
        raise Refused("unsatisfiable")
    missing = describe(set(example) - set(usable))
    return f"matches nothing that the model may write: {example[:40]!r}, say, needs {missing}"


def _check_encodable(pattern: str) -> None:
    if any("\ud800" <= c <= "\udfff" for c in pattern):
        raise OptionError("regex", "has half a character, which is no Unicode")


def _mistake(pattern: str) -> str:
    """What is wrong with a pattern that Rust refuses without a word. Python's own parser often finds the same."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            re.compile(pattern)
    except re.error as error:
        return f"is not a regular expression: {error}"
    except (OverflowError, RecursionError):
        return f"is too large: {_SMALLER}"
    return "has what regular expressions here have not, such as look-around, back-references, \\b, or a ^ inside"
