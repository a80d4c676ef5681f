"""Dependencies: bounded versions with reasons, and a lock file that satisfies them."""

from __future__ import annotations

import importlib.metadata
import re
import tomllib
from typing import Any

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import charlm
from tests.helpers import ROOT

PYPROJECT: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
EXTRAS = PYPROJECT["optional-dependencies"]
DECLARED = [
    Requirement(line) for line in [*PYPROJECT["dependencies"], *EXTRAS["dev"], *EXTRAS["keras"], *EXTRAS["notebook"]]
]
LOCK = (ROOT / ".ci/requirements.lock").read_text()
LOCKED = [Requirement(line.rstrip(" \\")) for line in re.findall(r"^[a-z].*$", LOCK, re.MULTILINE)]
WITH_TORCH = re.compile(r"torch$|triton$|nvidia-|cuda-")


@pytest.mark.parametrize("requirement", DECLARED, ids=str)
def test_every_dependency_is_bounded_on_both_sides(requirement: Requirement) -> None:
    operators = {part.operator for part in requirement.specifier}
    assert "==" in operators or {">=", "<"} <= operators


def test_the_withdrawn_releases_of_lightning_are_excluded() -> None:
    (lightning,) = [r for r in DECLARED if r.name == "pytorch-lightning"]
    assert not any(lightning.specifier.contains(version) for version in ("2.6.2", "2.6.3"))
    assert all(lightning.specifier.contains(version) for version in ("2.6.1", "2.6.4", "2.6.6"))


def test_every_dependency_has_a_reason() -> None:
    """On the same line or in a comment on the line above."""
    lines = (ROOT / "pyproject.toml").read_text().splitlines()
    start = lines.index("dependencies = [") + 1
    end = lines.index("]", start)
    for number in range(start, end):
        line = lines[number]
        if line.strip().startswith('"'):
            assert "#" in line or lines[number - 1].strip().startswith("#"), line


def test_the_lock_holds_what_is_declared_at_versions_that_fit() -> None:
    versions = {canonicalize_name(r.name): [p.version for p in r.specifier] for r in LOCKED}
    for requirement in DECLARED:
        if requirement.name != "torch":
            (version,) = versions[canonicalize_name(requirement.name)][:1]
            assert requirement.specifier.contains(version), requirement


def test_the_lock_is_complete_and_every_file_has_a_checksum() -> None:
    """It lists all direct and indirect dependencies except PyTorch and its own."""
    names = {canonicalize_name(r.name) for r in LOCKED}
    assert not any(WITH_TORCH.match(name) for name in names)
    waiting, seen = [(r.name, r.extras) for r in DECLARED], set()
    while waiting:
        name, extras = waiting.pop()
        name = canonicalize_name(name)
        if name in seen or WITH_TORCH.match(name):
            continue
        seen.add(name)
        try:
            needed = importlib.metadata.requires(name) or []
        except importlib.metadata.PackageNotFoundError:
            continue  # belongs to an extra that is not installed
        for requirement in map(Requirement, needed):
            if any(requirement.marker is None or requirement.marker.evaluate({"extra": e}) for e in ("", *extras)):
                waiting.append((requirement.name, tuple(requirement.extras)))
    assert len(seen) > 40
    assert sorted(seen - names) == []
    for block in re.split(r"^(?=[a-z])", LOCK, flags=re.MULTILINE)[1:]:
        assert re.match(r"\S+==\S+.*\\\n( +--hash=sha256:[0-9a-f]{64}( \\)?\n)+$", block), block[:200]


def test_the_version_is_written_in_one_place() -> None:
    assert importlib.metadata.version("charlm") == charlm.__version__
    assert "version" not in PYPROJECT and PYPROJECT["dynamic"] == ["version"]
