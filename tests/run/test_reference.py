"""Every option is listed with its declaration, in `docs/options.md` and by ``python train.py --help``."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Any

import pytest
from pydantic import Field

from charlm.models.recurrent import GRU
from charlm.options import Options, PositiveInt, checked
from charlm.run.reference import PAGE, arguments, declared, options_of, page
from charlm.run.suggest import CONF, option_names
from tests.helpers import MODELS, model_spec
from tests.programs import environment, program

ABOUT_CLASSES = {"_target_", "_partial_"}


def test_the_page_is_up_to_date() -> None:
    assert PAGE.read_text(encoding="utf-8") == page(), "run python -m charlm.run.reference"


def test_every_option_of_the_configs_is_on_the_page() -> None:
    listed = set(re.findall(r"^\| `([^`]+)`", PAGE.read_text(encoding="utf-8"), re.MULTILINE))
    foreign = ("optimizer.betas", "callbacks.average")  # declared by PyTorch and Lightning
    groups = {path.name for path in CONF.iterdir()}
    for name in option_names():
        known = name in listed or any(option.startswith(f"{name}.") for option in listed)
        about = name in groups or name.rpartition(".")[2] in ABOUT_CLASSES or name.startswith(("data.corpus", *foreign))
        assert known or about, f"{name} is declared nowhere"


@pytest.mark.parametrize("model", MODELS)
def test_every_option_of_a_model_is_declared_by_its_class(model: str) -> None:
    spec = dict(model_spec(model))
    declared_there = {option.name.removeprefix("model.") for option in options_of(spec.pop("_target_"), "model.")}
    assert spec.keys() <= declared_there


def test_every_option_has_a_type_and_a_description() -> None:
    for line in PAGE.read_text(encoding="utf-8").splitlines():
        if line.startswith("| `"):
            name, _, kind, meaning = re.split(r"(?<!\\) \| ", line.strip("| "))
            assert kind and meaning.endswith("."), name


def test_help_lists_the_options_of_the_chosen_config_with_their_values(tmp_path: Path) -> None:
    outcome = program("train.py", "model=lstm", "model.hidden_size=96", "--help", env=environment(tmp_path))
    assert (outcome.status, outcome.err) == (0, "")
    assert "model.hidden_size=96  (" in outcome.out and "lstm_cell" in outcome.out
    assert "\n  data.bptt=8  (integer ≥ 1 | auto)\n      Characters per row" in outcome.out
    assert "identity" not in outcome.out  # an option of model=rnn only


def test_a_new_option_needs_its_declaration_only() -> None:
    class Section(Options):
        depth: PositiveInt = 3
        """Layers of it."""

    class Net(GRU):
        @checked
        def __init__(
            self, *, width: Annotated[float, Field(gt=0, lt=2, description="How wide.")] = 1.5, **options: Any
        ) -> None:
            super().__init__(**options)

    assert list(declared(Section, "section.")) == [("section.depth", 3, "integer ≥ 1", "Layers of it.")]
    found = {option.name: option for option in arguments(Net, "model.")}
    assert found["model.width"] == ("model.width", 1.5, "number > 0, < 2", "How wide.")
    assert "model.hidden_size" in found
