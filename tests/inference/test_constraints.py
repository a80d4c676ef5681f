"""Constraints: what can be written through their masks, compared with Python's re and a small JSON checker."""

from __future__ import annotations

import itertools
import json
import re
import resource
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from charlm.errors import OptionError, UsageError
from charlm.inference.constraints import automaton, byte_automaton, process
from charlm.inference.constraints.constraint import Constraint, charset, check_length, json_schema, regex
from charlm.inference.constraints.schema import Reduction, parse_schema
from charlm.inference.prompts import read_schema
from charlm.text.vocab import Vocab
from tests.helpers import of_extra

of_extra("constrain", "outlines_core")

CHARS = "\nabé😀"
SMALL = Vocab(CHARS, pad=True, unk=True)
ASCII = Vocab("".join(map(chr, range(32, 127))), unk=True)


@pytest.fixture(autouse=True, scope="module")
def _here() -> Iterator[None]:
    """Most automata are built in this process: starting one takes longer than all the rest."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(byte_automaton, "_build", build_here)
        yield


SEPARATELY = byte_automaton._build


@pytest.fixture
def separately(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(byte_automaton, "_build", SEPARATELY)


def build_here(request: dict[str, Any]) -> tuple[dict[str, Any], Any]:
    header, transitions = process.build(request)
    if "problem" in header:
        raise byte_automaton.Refused(header["problem"])
    return header, np.array(transitions, np.int32).reshape(-1, 3)


def written(constraint: Constraint, vocab: Vocab, length: int) -> set[str]:
    """All texts that can be written within `length`. Each must be allowed to end where it has to."""
    texts = set()
    stack = [("", constraint.start)]
    while stack:
        text, state = stack.pop()
        ids = np.flatnonzero(constraint.allowed(state, length - len(text))).tolist()
        if not ids:
            assert constraint.may_end(state), text
            texts.add(text)
        stack += [(text + vocab.decode([i]), constraint.advance(state, i)) for i in ids]
    return texts


def expected(matches: Any, chars: str, length: int) -> set[str]:
    """The matches of at most `length` characters that no longer one begins with."""
    texts = ("".join(t) for n in range(length + 1) for t in itertools.product(chars, repeat=n))
    found = {text for text in texts if matches(text)}
    return {text for text in found if not any(f != text and f.startswith(text) for f in found)}


def draw(constraint: Constraint, vocab: Vocab, length: int, rng: np.random.Generator) -> str:
    text, state = "", constraint.start
    while (ids := np.flatnonzero(constraint.allowed(state, length - len(text)))).size:
        i = int(rng.choice(ids))
        text, state = text + vocab.decode([i]), constraint.advance(state, i)
    assert constraint.may_end(state)
    return text


ATOMS = st.sampled_from(["a", "b", "é", "😀", ".", "[ab]", "[^a]", r"\w", r"\s", "[é-😀]", "aé", "c", "(?:)"])
PATTERNS = st.recursive(
    ATOMS,
    lambda inner: st.one_of(
        st.builds("({}|{})".format, inner, inner),
        st.builds("{}{}".format, inner, inner),
        st.builds("(?:{}){}".format, inner, st.sampled_from(["*", "+", "?", "{2}", "{1,3}", "{2,}", "*?", "??"])),
    ),
    max_leaves=6,
)


@settings(max_examples=300, deadline=None)
@given(PATTERNS, st.integers(0, 4), st.sampled_from([None, CHARS, "ab", "aé\n", "b😀"]))
def test_exactly_the_matches_within_the_length_can_be_written(pattern: str, length: int, within: str | None) -> None:
    whole = re.compile(pattern)
    chars = within or CHARS
    texts = expected(whole.fullmatch, chars, length)
    try:
        constraint = regex(SMALL, pattern, within)
    except OptionError:
        assert texts <= {""}
        return
    if constraint.shortest > length:
        assert not texts
        with pytest.raises(OptionError, match=f"^length={length} .*shortest needs {constraint.shortest}$"):
            check_length(constraint, length)
        return
    check_length(constraint, length)
    assert written(constraint, SMALL, length) == texts
    if not constraint.may_end(constraint.start):
        assert constraint.shortest == min(map(len, expected(whole.fullmatch, chars, constraint.shortest)))


@settings(max_examples=60, deadline=None)
@given(PATTERNS, st.integers(5, 40), st.randoms(use_true_random=False))
def test_longer_texts_match_and_end_in_time(pattern: str, length: int, random: Any) -> None:
    try:
        constraint = regex(SMALL, pattern)
    except OptionError:
        assume(False)
    assume(constraint.shortest <= length)
    text = draw(constraint, SMALL, length, np.random.default_rng(random.getrandbits(32)))
    assert re.fullmatch(pattern, text) and len(text) <= length
    state = constraint.start
    for i in SMALL.encode(text).tolist():
        state = constraint.advance(state, i)
    assert constraint.may_end(state)


@pytest.mark.parametrize(
    ("pattern", "length", "texts"),
    [
        ("a(bé)?", 3, {"abé"}),
        ("a(bé)?", 2, {"a"}),
        ("(ab)*", 5, {"abab"}),
        ("(ab)*", 0, {""}),
        ("^a|b$", 9, {"a", "b"}),
        (r"a\$?", 9, {"a"}),
        ("(?s).", 1, set(CHARS)),
        (".", 1, set("abé😀")),
        ("(?i)A", 1, {"a"}),
        ("bA|a", 2, {"a"}),
        ("bЖ|a", 2, {"a"}),
        ("[a&&b]|b", 2, {"b"}),
        (r"\p{L}", 1, {"a", "b", "é"}),
        ("(?x) a b", 2, {"ab"}),
        ("a++", 3, {"aaa"}),
    ],
)
@pytest.mark.usefixtures("separately")
def test_what_is_written_in_particular(pattern: str, length: int, texts: set[str]) -> None:
    assert written(regex(SMALL, pattern), SMALL, length) == texts


def test_a_mask_leaves_only_what_can_still_end() -> None:
    constraint = regex(SMALL, "a+|b(aaa|é)")
    ids = {c: int(SMALL.encode(c)[0]) for c in CHARS}
    start = constraint.start
    assert constraint.shortest == 1 and not constraint.may_end(start)
    assert not constraint.allowed(start, 0).any()
    for remaining, chars in ((1, "a"), (2, "ab"), (3, "ab"), (99, "ab")):
        assert SMALL.decode(np.flatnonzero(constraint.allowed(start, remaining))) == chars
    after = constraint.advance(start, ids["b"])
    for remaining, chars in ((1, "é"), (2, "é"), (3, "aé"), (4, "aé")):
        assert SMALL.decode(np.flatnonzero(constraint.allowed(after, remaining))) == chars
    assert constraint.may_end(constraint.advance(after, ids["é"]))
    assert not constraint.may_end(constraint.advance(after, ids["a"]))


def test_states_stay_and_masks_are_shared_and_read_only() -> None:
    constraint = regex(ASCII, "[ab]{2,9}")
    state = constraint.advance(constraint.start, int(ASCII.encode("a")[0]))
    assert constraint.allowed(state, 50) is constraint.allowed(state, 60)
    assert constraint.allowed(state, 50).shape == (len(ASCII),)
    for mask in (constraint.allowed(state, 50), charset(ASCII, "a").allowed(0, 1), charset(ASCII, "a").allowed(0, 0)):
        with pytest.raises(ValueError):
            mask[0] = True
    assert constraint.start == 0 and hash(state) == hash(int(state))
    for other in (constraint, charset(ASCII, "ab")):
        for char_id in (0, int(ASCII.encode("z")[0])):
            with pytest.raises(ValueError):
                other.advance(other.start, char_id)


def test_special_symbols_and_half_characters_are_never_allowed() -> None:
    vocab = Vocab("ab\ud800\ufffd", pad=True, unk=True)
    mask = regex(vocab, "(?s).*").allowed(0, 5)
    assert mask.tolist() == [False, False, True, True, False, True]
    assert charset(vocab, "b").allowed(0, 5).tolist() == [False, False, False, True, False, False]


def test_dollars_and_zeros_are_characters_too() -> None:
    assert written(regex(Vocab("$a"), r"a\$"), Vocab("$a"), 2) == {"a$"}
    zero = Vocab("\0ab")
    assert written(regex(zero, "a\0b|b\0?"), zero, 3) == {"a\0b", "b\0"}
    dead_end = regex(SMALL, "ab|é", "aé")
    with pytest.raises(ValueError):
        dead_end.advance(0, int(SMALL.encode("a")[0]))


def test_a_character_set() -> None:
    constraint = charset(SMALL, "éaa")
    check_length(constraint, 0)
    assert written(constraint, SMALL, 2) == {"aa", "aé", "éa", "éé"}


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: charset(ASCII, ""), "charset='' must have at least one character"),
        (lambda: charset(ASCII, "aé"), "charset has what the model never saw, .*'é' .U.00E9 LATIN SMALL LETTER E WITH"),
        (lambda: regex(ASCII, "a", ""), "charset='' must have"),
        (lambda: regex(ASCII, "a", "ж"), "charset has what the model never saw"),
        (lambda: regex(ASCII, "(a"), r"regex='\(a' is not a regular expression: .* at position 0"),
        (lambda: regex(ASCII, "ab]("), "at position 3"),
        (lambda: regex(ASCII, "a)|(b"), "at position 1"),
        (lambda: regex(ASCII, "(?=a)b"), "look-around"),
        (lambda: regex(ASCII, r"(a)\1"), "back-references"),
        (lambda: regex(ASCII, r"\bfoo"), "regular expressions here have not"),
        (lambda: regex(ASCII, "b|(^a)"), r"\^ inside"),
        (lambda: regex(ASCII, "a$b"), r"matches no text: leave out any \$"),
        (lambda: regex(ASCII, "[a&&b]"), "matches no text"),
        (lambda: regex(ASCII, "a\ud800"), "half a character"),
        (lambda: regex(ASCII, ""), "regex='' matches only the empty text"),
        (lambda: regex(ASCII, "(é)?"), "matches only the empty text"),
        (lambda: regex(ASCII, "x+é|ж"), "matches nothing that the model may write: 'ж', say, needs 'ж' .U.0436"),
        (
            lambda: regex(ASCII, "a{2}b", "b"),
            r"matches nothing .*'aab', say, needs 'a' \(U.0061 LATIN SMALL LETTER A\)$",
        ),
        (lambda: regex(Vocab("a"), "[^a]"), "matches nothing .* needs '!' "),
        (lambda: json_schema(ASCII, {"enum": ["é"]}), "json_schema matches nothing .*'é'"),
        (lambda: json_schema(Vocab('"ab{}'), {"type": "integer"}), "json_schema matches nothing .* needs '0' "),
        (lambda: json_schema(ASCII, "{"), "json_schema is not JSON: .* at line 1, column 2"),
        (lambda: json_schema(ASCII, "[]"), "json_schema is not a JSON schema: it must be an object"),
        (lambda: check_length(regex(ASCII, r"\d{12}"), 5), "length=5 is too short .* needs 12"),
    ],
)
def test_bad_values_get_one_sentence(call: Any, message: str) -> None:
    with pytest.raises(UsageError, match=message) as caught:
        call()
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "pattern", [r"((\w{1,50}){1,50}){1,50}", "(a|b)*a(a|b){25}", "((a{1,100}){1,100}){1,100}", "a{1,4000000000}"]
)
@pytest.mark.usefixtures("separately")
def test_patterns_that_explode_end_soon_and_small(pattern: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(byte_automaton, "SECONDS", 1.5)
    started = time.monotonic()
    with pytest.raises(OptionError, match="needs too large an automaton: repeat less"):
        regex(ASCII, pattern)
    assert time.monotonic() - started < 10
    assert resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss < 1.2 * 2**20  # kB


@pytest.mark.parametrize("module", [automaton, byte_automaton])
def test_tables_are_limited(module: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    regex(Vocab("abcdefgh"), "a{30}")
    monkeypatch.setattr(module, "CELLS", 30)
    with pytest.raises(OptionError, match="too large"):
        regex(Vocab("abcdefgh"), "a{30}")


@pytest.mark.usefixtures("separately")
def test_a_program_that_fails_is_not_the_pattern_s_fault(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(byte_automaton, "PROGRAM", tmp_path / "broken.py")
    (tmp_path / "broken.py").write_text("1 / 0")
    with pytest.raises(RuntimeError, match="ZeroDivisionError"):
        regex(ASCII, "a")


@pytest.mark.usefixtures("separately")
def test_without_the_library(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(byte_automaton.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UsageError, match=r'outlines-core: pip install -e "\.\[constrain\]"$'):
        regex(ASCII, "a")


# JSON


def satisfies(value: Any, schema: dict[str, Any]) -> bool:
    """Whether `value` is one of `schema`, in the part of JSON Schema that is supported but for references."""
    if "anyOf" in schema:
        return any(satisfies(value, inner) for inner in schema["anyOf"])
    if "enum" in schema:
        return any(json.dumps(value) == json.dumps(v) for v in schema["enum"])
    if isinstance(schema["type"], list):
        return any(satisfies(value, {**schema, "type": name}) for name in schema["type"])
    length = len(value) if isinstance(value, str | list) else 0
    match schema["type"]:
        case "null" | "boolean":
            return isinstance(value, bool) if schema["type"] == "boolean" else value is None
        case "integer":
            return type(value) is int
        case "number":
            return type(value) in (int, float)
        case "string":
            return isinstance(value, str) and schema.get("minLength", 0) <= length <= schema.get("maxLength", length)
        case "array":
            if not isinstance(value, list) or not schema.get("minItems", 0) <= length <= schema.get("maxItems", length):
                return False
            if "prefixItems" in schema:
                return length <= len(schema["prefixItems"]) and all(map(satisfies, value, schema["prefixItems"]))
            return all(satisfies(v, schema["items"]) for v in value)
        case _:
            known, more = schema.get("properties", {}), schema.get("additionalProperties")
            return (
                isinstance(value, dict)
                and all(satisfies(v, known[k] if k in known else more) for k, v in value.items()) | (not value)
                and set(schema.get("required", ())) <= set(value)
            )


CONSTANTS = st.recursive(
    st.none() | st.booleans() | st.integers(-99, 99) | st.sampled_from(["", 'a"b', "\\d", "x.y|z", "é\n", 1.5, -0.25]),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.sampled_from(["k", "a.b", "(x"]), inner, max_size=2),
    max_leaves=4,
)


def with_limits(least: str, most: str, schema: dict[str, Any]) -> st.SearchStrategy[dict[str, Any]]:
    both = st.tuples(st.integers(0, 2), st.integers(0, 2)).map(sorted)
    return both.flatmap(
        lambda n: st.sampled_from(
            [schema, {**schema, least: n[0]}, {**schema, most: n[1]}, {**schema, least: n[0], most: n[1]}]
        )
    )


def objects(inner: st.SearchStrategy[dict[str, Any]]) -> st.SearchStrategy[dict[str, Any]]:
    names = st.lists(st.sampled_from(["a", "b.c", "d e", "é", "[f"]), unique=True, max_size=4)
    return names.flatmap(
        lambda names: st.builds(
            lambda properties, required: {"type": "object", "properties": properties, "required": required},
            st.fixed_dictionaries(dict.fromkeys(names, inner)),
            st.lists(st.sampled_from(names), unique=True) if names else st.just([]),
        )
    )


SCHEMAS = st.recursive(
    st.sampled_from([{"type": name} for name in ("null", "boolean", "integer", "number")])
    | with_limits("minLength", "maxLength", {"type": "string"})
    | st.builds(lambda values: {"enum": values}, st.lists(CONSTANTS, min_size=1, max_size=3))
    | st.just({"type": ["string", "null"], "maxLength": 2}),
    lambda inner: (
        objects(inner)
        | inner.flatmap(lambda items: with_limits("minItems", "maxItems", {"type": "array", "items": items}))
        | st.builds(lambda items: {"type": "array", "prefixItems": items}, st.lists(inner, min_size=1, max_size=2))
        | st.builds(lambda any_of: {"anyOf": any_of}, st.lists(inner, min_size=1, max_size=2))
        | st.builds(lambda more: {"type": "object", "additionalProperties": more}, inner)
    ),
    max_leaves=5,
)


@settings(max_examples=100, deadline=None)
@given(SCHEMAS, st.integers(0, 60), st.integers(0, 2**32))
def test_json_satisfies_its_schema(schema: dict[str, Any], more: int, seed: int) -> None:
    vocab = Vocab("".join(sorted({*ASCII.chars, "é", "\n"})), pad=True)
    constraint = json_schema(vocab, schema)
    rng = np.random.default_rng(seed)
    for length in (constraint.shortest, constraint.shortest + more):
        text = draw(constraint, vocab, length, rng)
        assert len(text) <= length
        assert satisfies(json.loads(text), schema), text


def test_json_in_particular() -> None:
    vocab = Vocab("".join(sorted({*'{}[]", :-truefalsn', *"0123456789a.+eE"})))
    node = {"type": "object", "properties": {"a": {"type": "boolean"}}, "required": ["a"]}
    texts = {t.replace(" ", "") for t in written(json_schema(vocab, node), vocab, 13)}
    assert texts == {'{"a":true}', '{"a":false}'}
    either = {"$ref": "#/$defs/x~1y", "$defs": {"x/y": {"const": [1, "a"]}}, "title": "t"}
    assert min(written(json_schema(vocab, either), vocab, 7)) == '[1,"a"]'
    assert written(json_schema(vocab, {"type": "number"}, "12."), vocab, 3) >= {"1.2", "222"}
    assert written(json_schema(vocab, {"type": "integer"}, "-10"), vocab, 2) == {"0", "-1", "-0", "10", "11"}
    uuid = draw(json_schema(ASCII, {"type": "string", "format": "uuid"}), ASCII, 99, np.random.default_rng(0))
    assert re.fullmatch('"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}"', uuid)


REFUSED = [
    ({}, r"there must be one of \$ref, enum, const, anyOf, type$"),
    ({"title": "x"}, "there must be one of"),
    ({"type": "foo"}, 'no type "foo"'),
    ({"type": []}, "type must be a list of at least one"),
    ({"type": [1]}, "no type 1"),
    ({"type": "integer", "minimum": 3}, "'minimum' is not supported"),
    ({"type": "string", "pattern": "a"}, "'pattern' is not supported"),
    ({"type": "string", "format": "email"}, "the only format is uuid"),
    ({"type": "string", "minLength": 3, "maxLength": 2}, "minLength is larger"),
    ({"type": "string", "minLength": -1}, "minLength must be an integer"),
    ({"type": "string", "maxLength": True}, "maxLength must be an integer"),
    ({"type": "array"}, "there must be a schema with a type"),
    ({"type": "array", "items": {"type": "null"}, "uniqueItems": True}, "uniqueItems"),
    ({"type": "array", "prefixItems": [{"type": "null"}], "items": {"type": "null"}}, "items to be false"),
    ({"type": "array", "prefixItems": [{"type": "null"}], "minItems": 5}, "minItems"),
    ({"type": "object"}, "there must be a schema"),
    ({"type": "object", "properties": {"a": True}}, "there must be a schema"),
    ({"type": "object", "properties": []}, "properties must be an object"),
    ({"type": "object", "properties": {}, "required": ["a"]}, "required must be a list of names"),
    ({"type": "object", "additionalProperties": {"type": "null"}, "required": ["a"]}, "must be in properties"),
    ({"type": "object", "properties": {'a"': {"type": "null"}}}, "JSON must escape"),
    ({"type": "null", "properties": {}}, "'properties' is not supported"),
    ({"enum": []}, "enum must be a list"),
    ({"enum": [1, "a"], "type": "string"}, "1 is not of type string"),
    ({"const": 1, "type": 3}, "type must be a list"),
    ({"const": 1, "type": [[]]}, r"no type \[\]"),
    ({"const": True, "type": "integer"}, "true is not of type integer"),
    ({"const": 2**70}, "too large"),
    ({"const": [{"a\n": 1}]}, "JSON must escape"),
    ({"enum": ["a"], "minLength": 3}, "'minLength' is not supported"),
    ({"anyOf": [{"type": "null"}], "type": "integer"}, "'type' is not supported there"),
    ({"anyOf": {}}, "anyOf must be a list"),
    ({"allOf": [{"type": "null"}]}, "there must be one of"),
    ({"not": {}}, "there must be one of"),
    ({"$ref": "http://x/y"}, "must begin with #"),
    ({"$ref": 3}, "must begin with #"),
    ({"$ref": "#/$defs/a"}, "there is no #/.defs/a"),
    ({"type": "object", "properties": {"a": {"$ref": "#"}}}, "# refers to itself"),
    ({"$defs": {"a": {"$ref": "#/$defs/a"}}, "$ref": "#/$defs/a"}, "refers to itself"),
]


@pytest.mark.parametrize(("schema", "message"), REFUSED)
def test_schemas_that_cannot_be_kept_to(schema: dict[str, Any], message: str) -> None:
    with pytest.raises(OptionError, match="^json_schema cannot be kept to: at .*, .*" + message):
        json_schema(ASCII, schema)


def test_a_place_is_named_and_depth_is_limited() -> None:
    inner: dict[str, Any] = {"type": "array", "items": {"type": "string", "pattern": "a"}}
    with pytest.raises(OptionError, match=r"at \$\.list\.items, 'pattern'"):
        json_schema(ASCII, {"type": "object", "properties": {"list": inner}})
    for _ in range(60):
        inner = {"type": "array", "items": inner}
    with pytest.raises(OptionError, match="more than 50 inside each other"):
        Reduction(inner)
    constant: list[Any] = []
    for _ in range(5000):
        constant = [constant]
    with pytest.raises(OptionError, match="nested too deeply"):
        Reduction({"const": constant})


def test_a_schema_that_doubles_with_every_reference() -> None:
    twice = {f"d{i}": {"anyOf": [{"$ref": f"#/$defs/d{i + 1}"}] * 2} for i in range(40)}
    with pytest.raises(OptionError, match="more than 2000 schemas"):
        Reduction({"$defs": {**twice, "d40": {"type": "null"}}, "$ref": "#/$defs/d0"})


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is not JSON: expecting value at line 1, column 1"),
        (b"{\n 'a': 1}", "is not JSON: .* at line 2, column 2"),
        (b'{"const": NaN}', "is not JSON: it has no number NaN"),
        (b'{"a": "\xff"}', "is not in UTF-8 .byte 7."),
        (b"[" * 100_000, "nested too deeply"),
        (b"3", "is not a JSON schema"),
    ],
)
def test_files_that_are_no_schema(content: bytes, message: str, tmp_path: Path) -> None:
    path = tmp_path / "schema.json"
    path.write_bytes(content)
    with pytest.raises(UsageError, match=message) as caught:
        read_schema(str(path))
    assert str(path) in str(caught.value)


def test_reading_a_schema(tmp_path: Path) -> None:
    path = tmp_path / "schema.json"
    with pytest.raises(UsageError, match="schema.json: No such file"):
        read_schema(str(path))
    path.write_text('\ufeff{"const": "é"}', encoding="utf-8")
    assert read_schema(str(path)) == parse_schema('{"const": "é"}') == {"const": "é"}
