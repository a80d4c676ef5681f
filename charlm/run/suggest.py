"""What the user meant: values that Hydra's grammar refuses, names that do not exist.

Loads nothing heavy, so that the answer comes at once.
"""

from __future__ import annotations

import difflib
import re
import shlex
from collections.abc import Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException, OverrideParseException
from omegaconf import OmegaConf

from charlm.checkpoint.paths import quoted
from charlm.errors import UsageError

CONF = Path(__file__).parents[2] / "conf"
FLAGS = (  # Hydra's: https://hydra.cc/docs/advanced/hydra-command-line-flags
    *("--help", "--hydra-help", "--version", "--cfg", "--resolve", "--package", "--run", "--multirun", "--info"),
    *("--shell-completion", "--config-path", "--config-name", "--config-dir", "--experimental-rerun"),
    *("-h", "-c", "-p", "-r", "-m", "-i", "-sc", "-cp", "-cn", "-cd"),
)
EXTRAS = {
    "joblib": "sweep",
    "ray": "ray",
    "submitit": "slurm",
}  # what has to be installed for Hydra's launchers and sweepers
OPEN = ("model", "optimizer", "schedule.scheduler", "trainer", "logger", "callbacks")  # their classes take more options


SINGLE = ("model", "data", "optimizer", "schedule", "trainer", "logger", "experiment")  # of which a run has one


def explain(error: BaseException, *, python: bool = False) -> str | None:
    """One sentence for a mistake in an override, instead of Hydra's own words; None for another error.

    `python` says that it was not given on the command line.
    """
    message = str(error)
    if isinstance(error, OverrideParseException):
        return unreadable(error.override)
    if found := re.search(r"Ambiguous value for argument '(.*)'\n", message):
        return several(found[1], python)
    if found := re.search(r"Could not (?:find|load) '(\w+)/([^']*)'", message):
        if found[1] == "hydra":
            group, _, choice = found[2].rpartition("/")
            extra = next((extra for start, extra in EXTRAS.items() if choice.startswith(start)), None)
            more = f"install it with pip install -e '.[{extra}]'" if extra else f"Hydra's own is hydra/{group}=basic"
            return f"there is no hydra/{group}={choice}: {more}"
        group, choices = found[1], sorted(path.stem for path in (CONF / found[1]).glob("*.yaml"))
        if group == "data" and found[2] and Path(found[2]).exists():
            path = shlex.quote(f"data.path={found[2]}")
            return f"data={found[2]} is no config: for your own text, write data=text {path}"
        close = difflib.get_close_matches(found[2], choices, 1)
        more = f"did you mean {close[0]}?" if close else f"choose one of {', '.join(choices)}"
        if group == "callbacks" and set(found[2].split()) <= set(choices) and found[2]:  # with spaces between them
            more = f"write '{group}=[{','.join(found[2].split())}]'"
        return f"there is no {group}={found[2]}: {more}"
    if found := re.search(r"Interpolation key '(.*)' not found", message):
        return f"${{{found[1]}}} in a value refers to an option that does not exist: write \\${{ for a plain ${{"
    if found := re.search(r"An item is already at '([^']+)'", message):
        return f"{found[1]} is set in conf/: leave out the +"
    if found := re.search(r"Could not override '([^']+)'", message):
        section = found[1]
        if any(option.startswith(f"{section}.") for option in option_names()):  # the unknown name is within the value
            more = f"write +{section}.NAME=VALUE for it" if section in OPEN else "python train.py --help lists them"
            return f"{section}={{…}} has an option that is not set in conf/: {more}"
        return unknown(section)
    return None


def option_of(override: str) -> str:
    """The full name of the option that an override sets."""
    return override.lstrip("+~").partition("=")[0]


def readable(overrides: Sequence[str], *, python: bool = False) -> list[str]:
    """`overrides` with values quoted where Hydra's grammar refuses them, such as a path in another alphabet.

    Commas outside a list are left to the user, as they separate the values of a multirun, and so are nested values.
    """
    for override in overrides:
        group, _, value = override.lstrip("+").partition("=")
        if group in SINGLE and value.startswith("["):
            how = f"add -m and give {group}=A,B" if not python else "call charlm.train once for each"
            raise UsageError(f"{override}: {group} takes one name; to train with several, {how}")
    read = [_quote_where_needed(override) for override in overrides]
    # Any option may be added to the space of an experiment.
    return [f"++{override}" if override.startswith("search.space=") else override for override in read]


def _quote_where_needed(override: str) -> str:
    name, _, value = override.partition("=")
    if not value or not re.fullmatch(r"\+{0,2}[\w.@/]+", name) or _is_readable(override):
        return override
    is_list = value[0] == "[" and value[-1] == "]"
    parts = [part.strip() for part in value[1:-1].split(",")] if is_list else [value]
    if any(re.search(r"""[,\[\]{}()]|^\s*["']""", part) for part in parts):
        return override
    parts = [part if _is_readable(f"x={part}") else quoted(part) for part in parts]
    return f"{name}=[{','.join(parts)}]" if is_list else f"{name}={parts[0]}"


def _is_readable(override: str) -> bool:
    try:
        OverridesParser.create().parse_override(override)
    except HydraException:
        return False
    return True


def arguments(given: Sequence[str]) -> list[str]:
    """The command line as Hydra reads it. Raises UsageError for a flag that does not exist.

    ``-m`` may stand anywhere, but Hydra's parser refuses it between overrides.
    """
    for argument in given:
        flag, _, value = argument.partition("=")
        if re.match(r"--?[a-zA-Z]", flag) and not any(known.startswith(flag) for known in FLAGS):
            name = flag.lstrip("-")
            example = f"{name}={value or 'VALUE'}" if name in option_names() else "model=gru"
            raise UsageError(
                f"there is no flag {flag}: options are written without dashes, as in {example}; "
                "python train.py --help lists them"
            )
    several = [argument for argument in given if argument in ("-m", "--multirun", "hydra.mode=MULTIRUN")]
    return [*(["-m"] if several else []), *readable([argument for argument in given if argument not in several])]


def several(override: str, python: bool) -> str:
    """One sentence for values that are separated by commas where one was expected."""
    name, _, value = override.partition("=")
    how = "call charlm.train once for each" if python else "add -m to train once with each"
    if re.fullmatch(r"-?0,\d+", value):
        return f"{override} is two numbers: write {name}={value.replace(',', '.')} with a decimal point, or {how}"
    if name in SINGLE:
        return f"{override} names several: choose one, or {how}"
    if name == "callbacks":
        return f"{override} cannot be read: write '{name}=[{value}]' for all of them in one run, or {how}"
    return f"{override} has several values: {how}, or quote a text with a comma, as in {in_quotes(name, value)}"


def unknown(name: str) -> str:
    """One sentence for an option that the composed config does not have."""
    if where := [choice for choice in option_names().get(name, []) if choice]:
        sets = "sets it" if len(where) == 1 else "set it"
        return f"{name} is not set by the chosen configs: {', '.join(where)} {sets}, or write +{name}=VALUE"
    if name.startswith("hydra."):
        return f"{name} is not among Hydra's options here: write +{name}=VALUE to add it"
    section = next((section for section in OPEN if name.startswith(f"{section}.")), None)
    close = nearest(name) or ""
    same = close.startswith(f"{section}.") or close.rpartition(".")[2] == name.rpartition(".")[2]
    if section is not None and not same:
        return f"{name} is not set in conf/: write +{name}=VALUE to add it"
    return f"{name} is not an option{did_you_mean(name)}"


def unreadable(override: str) -> str:
    """One sentence for an override that Hydra cannot parse."""
    name, equals, value = override.partition("=")
    if not equals:
        if override in option_names():
            return f"{override} is not NAME=VALUE: write {override}=VALUE, without a space"
        return (
            f"{override} is not NAME=VALUE: for a text, write data=text data.path={override}; a path with spaces needs "
            f"quotes, as in 'data.path=my texts/'"
        )
    if (mark := value[:1]) in ("'", '"') and value.count(mark) == 1:
        return f"{override} cannot be read: it begins with a quote ({mark}) that has no end"
    return f"{override} cannot be read: quote the value, as in {in_quotes(name, value)}"


def in_quotes(name: str, value: str) -> str:
    """The override with a quoted value, for a shell."""
    right = f"{name}={quoted(value)}"
    return shlex.quote(right) if re.search(r'["$`\\]', right) else f'"{right}"'  # easier to read in double quotes


def did_you_mean(name: str) -> str:
    """The end of a sentence about an option that does not exist."""
    close = nearest(name)
    return f": did you mean {close}?" if close else ": python train.py --help lists them"


def nearest(name: str) -> str | None:
    """An option like `name`: in the same section, in one of a similar name, or else of a similar name anywhere."""
    options = sorted(option_names(), key=lambda option: option.count("."))
    section, _, leaf = name.rpartition(".")
    siblings = {option.rpartition(".")[2]: option for option in options if option.rpartition(".")[0] == section}
    anywhere = {option.rpartition(".")[2]: option for option in reversed(options)}  # the shortest name wins
    if close := difflib.get_close_matches(leaf, siblings, 1):
        return siblings[close[0]]
    if section and not siblings and (close := difflib.get_close_matches(name, options, 1, cutoff=0.85)):
        return close[0]
    if close := difflib.get_close_matches(leaf, anywhere, 1):
        return anywhere[close[0]]
    return None


@cache
def option_names() -> dict[str, list[str]]:
    """The full name of every option in ``conf/``, each with the choices that set it, such as ``data=text``."""
    names: dict[str, list[str]] = {path.name: [""] for path in CONF.iterdir() if path.is_dir()}
    for path in sorted(CONF.glob("**/*.yaml")):
        group = "" if path.parent == CONF else path.parent.name
        if group != "experiment":
            for name in _names(OmegaConf.to_container(OmegaConf.load(path)), f"{group}." if group else ""):
                names.setdefault(name, []).append(f"{group}={path.stem}" if group else "")
    return names


def _names(section: Any, prefix: str) -> Iterator[str]:
    for key, value in section.items():
        if key in ("defaults", "hydra"):
            continue
        yield f"{prefix}{key}"
        if isinstance(value, dict):
            yield from _names(value, f"{prefix}{key}.")
