"""The options of ``data``: values as Hydra parses them, defaults, and the types that are required."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from charlm.data.options import DataOptions
from charlm.errors import OptionError
from tests.helpers import ROOT


def options(**values: Any) -> DataOptions:
    return DataOptions(**{"name": "made up", "corpus": {}} | values)


@pytest.mark.parametrize("name", sorted(path.stem for path in (ROOT / "conf/data").glob("*.yaml")))
def test_every_file_in_conf_data_is_accepted(name: str) -> None:
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        data = OmegaConf.to_container(compose("train", [f"data={name}"]).data, resolve=True)
    assert DataOptions(**data).model_dump(exclude_unset=True) == data


def test_the_defaults_are_those_of_the_config() -> None:
    config = OmegaConf.to_container(OmegaConf.load(ROOT / "conf/train.yaml").data)
    assert {name: getattr(options(), name) for name in config} == config


@pytest.mark.parametrize(("value", "text"), [(2024, "2024"), (1.5, "1.5"), ("notes/", "notes/"), ("\udcff", "\udcff")])
def test_a_path_may_look_like_a_number(value: object, text: str) -> None:
    read = options(name=value, path=value, paths=[value, value], encoding=value)
    assert (read.name, read.path, read.paths, read.encoding) == (text, text, [text, text], text)


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("path", True, "path=true must be text"),
        ("path", None, "path=null must be text"),
        ("path", ["a"], r"path=\['a'\] is a list: .*data=mix 'data\.paths=\[a\]' to mix several texts"),
        ("paths", "a.txt", "paths='a.txt' must be a list in brackets"),
        ("paths", ["a", True], "paths.1=true must be text"),
        ("corpus", 3, "corpus=3 must be a section of options"),
        ("nonsense", 3, "nonsense is not an option"),
    ],
)
def test_a_bad_value_is_refused(name: str, value: object, message: str) -> None:
    with pytest.raises(OptionError, match=f"^{message}$"):
        options(**{name: value})


@pytest.mark.parametrize("name", ["name", "corpus"])
def test_a_corpus_and_its_name_are_needed(name: str) -> None:
    with pytest.raises(OptionError, match=f"^{name} is missing$"):
        DataOptions(**{key: value for key, value in {"name": "made up", "corpus": {}}.items() if key != name})


@pytest.mark.parametrize("value", [0, 1, 0.0, 0.5])
def test_a_count_stays_a_count_and_a_fraction_a_fraction(value: float) -> None:
    read = options(train=value, val=value, test=value)
    assert all(type(size) is type(value) and size == value for size in (read.train, read.val, read.test))


def test_they_are_read_without_pytorch() -> None:
    code = "import sys, charlm.data.options; sys.exit(bool({'torch', 'pytorch_lightning', 'hydra'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == 0
