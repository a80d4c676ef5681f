"""JSON schemas as far as outlines-core keeps to them.

Without a word, it ignores some of what it does not know (minimum, uniqueItems, types beside anyOf) and gets some wrong
(allOf, names with quotes, constants with names, recursion). So a schema is first reduced to what it does well, and the
rest is refused.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, NoReturn

from charlm.errors import OptionError, UsageError

NAME = "json_schema"
DEEPEST, LARGEST = 50, 2000  # schemas inside each other, and in all
NOTES = {"title", "description", "default", "examples", "deprecated", "readOnly", "writeOnly"}
NOTES |= {"$schema", "$id", "$comment", "$defs", "definitions"}
KINDS = ("$ref", "enum", "const", "anyOf", "type")
KEYWORDS: dict[str, set[str]] = {
    "string": {"minLength", "maxLength", "format"},
    "integer": set(),
    "number": set(),
    "boolean": set(),
    "null": set(),
    "array": {"items", "prefixItems", "minItems", "maxItems"},
    "object": {"properties", "required", "additionalProperties"},
}
PYTHON: dict[str, tuple[type, ...]] = {
    "string": (str,),
    "integer": (int,),
    "number": (int, float),
    "boolean": (bool,),
    "null": (type(None),),
    "array": (list,),
    "object": (dict,),
}


def parse_schema(text: str, name: str = NAME) -> dict[str, Any]:
    """The JSON schema in `text`. Raises UsageError, which names it `name`."""
    try:
        schema = json.loads(text, parse_constant=_no_number)
    except json.JSONDecodeError as error:
        place = f"line {error.lineno}, column {error.colno}"
        raise UsageError(f"{name} is not JSON: {error.msg[:1].lower()}{error.msg[1:]} at {place}") from None
    except ValueError as error:
        raise UsageError(f"{name} is not JSON: {error}") from None
    except RecursionError:
        raise UsageError(f"{name} is nested too deeply") from None
    if not isinstance(schema, dict):
        raise UsageError(f"{name} is not a JSON schema: it must be an object, such as {{'type': 'integer'}}")
    return schema


def _no_number(name: str) -> NoReturn:
    raise ValueError(f"it has no number {name}")


def _refuse(where: str, problem: str) -> NoReturn:
    raise OptionError(NAME, f"cannot be kept to: at {where}, {problem}")


class Reduction:
    """`schema` in the words that the library keeps to, without references."""

    def __init__(self, schema: Mapping[str, Any]) -> None:
        """Raises OptionError for a schema that is none, or that needs more than is supported."""
        self._root, self._count = schema, 0
        try:
            self.schema = self._reduce(schema, "$", ())
        except RecursionError:
            _refuse("$", "a constant is nested too deeply")

    def _reduce(self, node: Any, where: str, references: tuple[str, ...]) -> dict[str, Any]:
        self._count += 1
        if self._count > LARGEST or where.count(".") > DEEPEST:
            _refuse(where[:80], f"there are more than {LARGEST} schemas, or more than {DEEPEST} inside each other")
        if not isinstance(node, Mapping):
            _refuse(where, "there must be a schema with a type")
        keys = set(node) - NOTES
        kind = next((kind for kind in KINDS if kind in keys), None)
        if kind is None:
            _refuse(where, f"there must be one of {', '.join(KINDS)}")
        if kind == "type":
            return self._typed(node, keys, where, references)
        self._only(keys, {kind, "type"} if kind in ("enum", "const") else {kind}, where)
        if kind == "$ref":
            reference = node["$ref"]
            if reference in references:
                _refuse(where, f"{reference} refers to itself, which only a schema without an end can do")
            return self._reduce(self._find(reference, where), where, (*references, reference))
        if kind == "anyOf":
            return {"anyOf": [self._reduce(n, f"{where}.anyOf", references) for n in _listed(node, kind, where)]}
        values = [node["const"]] if kind == "const" else _listed(node, kind, where)
        types = _types(node, where) if "type" in node else list(KEYWORDS)
        for value in values:
            if not any(_is(value, name) for name in types):
                _refuse(where, f"{json.dumps(value, ensure_ascii=False)[:40]} is not of type {' or '.join(types)}")
        found = [_constant(value, where) for value in values]
        return found[0] if len(found) == 1 else {"anyOf": found}

    def _typed(self, node: Mapping[str, Any], keys: set[str], where: str, references: tuple[str, ...]) -> dict:
        types = _types(node, where)
        self._only(keys, {"type"}.union(*(KEYWORDS[name] for name in types)), where)
        found = [self._of_type(name, node, where, references) for name in types]
        return found[0] if len(found) == 1 else {"anyOf": found}

    def _of_type(self, name: str, node: Mapping[str, Any], where: str, references: tuple[str, ...]) -> dict[str, Any]:
        """One type with its own keywords; a schema's other keywords say nothing about it."""
        own = {key: node[key] for key in KEYWORDS[name] if key in node}
        if name == "string":
            if "format" in own and (own["format"] != "uuid" or len(own) > 1):
                _refuse(where, "the only format is uuid, without a length")
            _check_counts(own, "minLength", "maxLength", where)
        elif name == "array":
            _check_counts(own, "minItems", "maxItems", where)
            if "prefixItems" in own:
                self._only(set(own), {"prefixItems", "items"}, where)
                if own.pop("items", False) is not False:
                    _refuse(where, "prefixItems needs items to be false")
                own["prefixItems"] = [
                    self._reduce(n, f"{where}.prefixItems", references) for n in _listed(own, "prefixItems", where)
                ]
            else:
                own["items"] = self._reduce(own.get("items"), f"{where}.items", references)
        elif name == "object":
            own = self._object(own, where, references)
        return {"type": name, **own}

    def _object(self, own: dict[str, Any], where: str, references: tuple[str, ...]) -> dict[str, Any]:
        more = own.get("additionalProperties", True)
        if "properties" not in own:
            if own.get("required"):
                _refuse(where, "what is required must be in properties")
            return {"additionalProperties": self._reduce(more, f"{where}.additionalProperties", references)}
        properties, required = own["properties"], own.get("required", [])
        if not isinstance(properties, Mapping):
            _refuse(where, "properties must be an object")
        if not isinstance(required, list) or not all(isinstance(r, str) and r in properties for r in required):
            _refuse(where, "required must be a list of names that are in properties")
        for name in properties:
            _plain_name(name, where)
        reduced = {name: self._reduce(n, f"{where}.{name}", references) for name, n in properties.items()}
        return {"properties": reduced, "required": required}  # no others are written, whether they may be or not

    def _find(self, reference: Any, where: str) -> Any:
        if not isinstance(reference, str) or reference[:1] != "#":
            _refuse(where, "a $ref must begin with #, for a place in the same schema")
        place: Any = self._root
        for part in reference[1:].split("/")[1:]:
            part = part.replace("~1", "/").replace("~0", "~")
            if not isinstance(place, Mapping) or part not in place:
                _refuse(where, f"there is no {reference[:80]}")
            place = place[part]
        return place

    def _only(self, keys: set[str], allowed: set[str], where: str) -> None:
        if more := sorted(keys - allowed):
            _refuse(where, f"{more[0]!r} is not supported{' there' if more[0] in KINDS else ''}: leave it out")


def _types(node: Mapping[str, Any], where: str) -> list[str]:
    types = [node["type"]] if isinstance(node["type"], str) else _listed(node, "type", where)
    for name in types:
        if not isinstance(name, str) or name not in KEYWORDS:
            _refuse(where, f"there is no type {json.dumps(name)[:40]}")
    return types


def _listed(node: Mapping[str, Any], key: str, where: str) -> list[Any]:
    if not isinstance(node[key], list) or not node[key]:
        _refuse(where, f"{key} must be a list of at least one")
    return list(node[key])


def _check_counts(own: Mapping[str, Any], least: str, most: str, where: str) -> None:
    for key in (least, most):
        if key in own and (type(own[key]) is not int or own[key] < 0):
            _refuse(where, f"{key} must be an integer of at least 0")
    if own.get(least, 0) > own.get(most, own.get(least, 0)):
        _refuse(where, f"{least} is larger than {most}")


def _is(value: Any, name: str) -> bool:
    if name == "integer" and isinstance(value, float):
        return value.is_integer()
    return isinstance(value, PYTHON[name]) and (isinstance(value, bool) == (name == "boolean"))


def _plain_name(name: str, where: str) -> None:
    if json.dumps(name, ensure_ascii=False) != f'"{name}"' or "\x7f" in name:
        _refuse(where, f"the name {json.dumps(name)[:40]} has characters that JSON must escape")


def _constant(value: Any, where: str) -> dict[str, Any]:
    """The schema of a constant; the library writes names inside constants down as if they were expressions."""
    if isinstance(value, dict):
        for name in value:
            _plain_name(name, where)
        properties = {name: _constant(inner, where) for name, inner in value.items()}
        return {"type": "object", "properties": properties, "required": list(value)}
    if isinstance(value, list):
        return {"type": "array", "prefixItems": [_constant(inner, where) for inner in value]}
    if isinstance(value, int) and not -(2**63) <= value < 2**64:
        _refuse(where, "a number is too large")
    return {"const": value}
