"""The list of every option, from the declarations: ``python train.py --help`` and ``docs/options.md``.

``python -m charlm.run.reference`` writes the latter.
"""

from __future__ import annotations

import json
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from pydantic import BaseModel, create_model
from pydantic.fields import FieldInfo

from charlm.models.windowed import Windowed
from charlm.options import STRICT, Options
from charlm.run.compose import compose_job
from charlm.run.instantiate import INTERNAL, resolve_target, signature
from charlm.run.settings import OptimizerOptions, Settings
from charlm.run.suggest import CONF

PAGE = CONF.parent / "docs/options.md"
USAGE = """python train.py NAME=VALUE …         train, as in model=lstm data=text data.path=notes/ optimizer.lr=3e-3
python train.py -m NAME=VALUE,VALUE  train once with each value
python train.py resume=RUN           resume a run
python train.py NAME=VALUE … --help  list the options of what these values choose

Losses are in nats per character: the mean of -ln p(next character). bpc, bits per
character, is nats / ln 2. Perplexity is e^nats: the model hesitates as between so
many equally likely characters. Lower is better for all three.

The groups, each with its files in conf/:"""
NO_DEFAULT = "–"
ORDER = list(Settings.model_fields)
TYPES = {"integer": "integer", "number": "number", "string": "text", "boolean": "true | false", "null": "null"}
RANGES = {"minimum": "≥", "exclusiveMinimum": ">", "maximum": "≤", "exclusiveMaximum": "<"}


class Option(NamedTuple):
    """One option: its full name, its default, its type with the range, and what it means."""

    name: str
    default: Any
    type: str
    meaning: str


def declared(section: type[BaseModel], prefix: str = "") -> Iterator[Option]:
    """The options that `section`, and the sections in it, declare."""
    for name, field in section.model_fields.items():
        inner = field.annotation
        if isinstance(inner, type) and issubclass(inner, Options):
            yield from declared(inner, f"{prefix}{name}.")
        else:
            schema = section.model_json_schema()
            default = NO_DEFAULT if field.is_required() else field.get_default(call_default_factory=True)
            yield Option(prefix + name, default, type_name(schema["properties"][name]), field.description or "")


def arguments(target: Any, prefix: str) -> Iterator[Option]:
    """The options that the function or constructor `target` declares: its arguments with a description."""
    fields: dict[str, Any] = {}
    for name, parameter in (signature(target, evaluate=True) or {}).items():
        notes = getattr(parameter.annotation, "__metadata__", ())
        if any(isinstance(note, FieldInfo) and note.description for note in notes):
            default = ... if parameter.default is parameter.empty else parameter.default
            fields[name] = (parameter.annotation, default)
    yield from declared(create_model("_", __config__=STRICT, **fields), prefix)


def undeclared(target: Any, prefix: str) -> Iterator[Option]:
    """The other arguments of a class of somebody else, about which only names and defaults are known."""
    for name, parameter in (signature(target) or {}).items():
        if name not in INTERNAL:
            default = NO_DEFAULT if parameter.default is parameter.empty else parameter.default
            yield Option(prefix + name, default, "", f"See {getattr(target, '__qualname__', target)}.")


def type_name(schema: dict[str, Any]) -> str:
    """The type and the range of a JSON schema in words."""
    if "anyOf" in schema:
        return " | ".join(type_name(branch) for branch in schema["anyOf"])
    if "const" in schema:
        return str(schema["const"])
    if "enum" in schema:
        return " | ".join(map(str, schema["enum"]))
    if schema.get("type") == "array":
        return f"list of {type_name(schema['items'])}"
    limits = [f"{sign} {schema[key]:.15g}" for key, sign in RANGES.items() if key in schema]
    return f"{TYPES.get(schema.get('type', ''), 'section')} {', '.join(limits)}".strip()


def targets(section: Any, prefix: str) -> Iterator[tuple[str, str]]:
    """Each ``_target_`` in `section`, with the prefix of its options."""
    if isinstance(section, Mapping):
        if "_target_" in section:
            yield str(section["_target_"]), prefix
        for name, inner in section.items():
            yield from targets(inner, f"{prefix}{name}.")


def options_of(target: str, prefix: str) -> list[Option]:
    """The options of what `target` names."""
    if prefix == "optimizer.":
        return [option._replace(default=NO_DEFAULT) for option in declared(OptimizerOptions, prefix)]
    found = list(arguments(resolve_target(prefix, target), prefix))
    if prefix == "model.":
        found += [window._replace(default=None, type=f"{window.type} | null") for window in arguments(Windowed, prefix)]
    return found


def page() -> str:
    """The text of ``docs/options.md``."""
    lines = [
        "# Options",
        "",
        "Written by `python -m charlm.run.reference` from the declarations in the code. `python train.py --help` lists",
        "the options of one config with their values. A default here is the declaration's; `conf/` may set another.",
        "",
        "## Every run",
        "",
        *rows(list(declared(Settings))),
    ]
    users: dict[tuple[Option, ...], list[str]] = {}
    for group in ("data", "model", "optimizer", "schedule", "logger", "callbacks"):
        for choice in sorted(path.stem for path in CONF.glob(f"{group}/*.yaml")):
            settings = compose_job([f"{group}={choice}"])[0].model_dump()
            for target, prefix in targets(settings[group], f"{group}."):
                if options := tuple(options_of(target, prefix)):
                    users.setdefault(options, []).append(f"`{group}={choice}`")
    for options, names in users.items():
        lines += ["", f"## {', '.join(names)}", "", *rows(options)]
    return "\n".join(lines) + "\n"


def rows(options: Sequence[Option]) -> list[str]:
    """A Markdown table."""
    cells = [(f"`{o.name}`", written(o.default), o.type, o.meaning) for o in options]
    lines = [" | ".join(cell.replace("|", "\\|") for cell in row) for row in cells]
    return ["| option | default | type | meaning |", "| --- | --- | --- | --- |", *(f"| {line} |" for line in lines)]


def written(value: Any) -> str:
    """`value` as it is written on the command line."""
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)


def print_help(overrides: Sequence[str]) -> None:
    """Print the groups, and every option of the config that `overrides` compose, with its value."""
    settings = compose_job(list(overrides))[0].model_dump()
    options = {option.name: option for option in declared(Settings)}
    for target, prefix in targets(settings, ""):
        if prefix != "data.corpus.":
            known = [*options_of(target, prefix), *undeclared(resolve_target(prefix, target), prefix)]
            options |= {option.name: option for option in reversed(known) if option.name not in options}
    print(USAGE)
    for folder in sorted(path for path in CONF.iterdir() if path.is_dir()):
        choices = " ".join(sorted(path.stem for path in folder.glob("*.yaml")))
        print(textwrap.fill(f"{folder.name}={choices}", 80, initial_indent="  ", subsequent_indent="    "))
    print("\nThe options, with the values that a run would use:")
    for option in sorted(options.values(), key=lambda option: ORDER.index(option.name.partition(".")[0])):
        value: Any = settings
        for part in option.name.split("."):
            value = value.get(part, option.default) if isinstance(value, dict) else option.default
        if not isinstance(value, dict):
            print(f"  {option.name}={written(value)}" + (f"  ({option.type})" if option.type else ""))
            print(textwrap.fill(option.meaning, 80, initial_indent="      ", subsequent_indent="      "))


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
