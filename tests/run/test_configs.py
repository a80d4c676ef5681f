"""Every yaml composes, and the classes and functions that it names exist."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from hydra import compose, initialize_config_dir
from hydra.core.hydra_config import HydraConfig
from hydra.utils import get_object, instantiate
from omegaconf import DictConfig, OmegaConf

from charlm.run.build import fill_in_lengths
from charlm.run.settings import check_settings
from charlm.run.trust import is_trusted
from tests.helpers import ROOT

GROUPS = sorted(
    (path.parent.name, path.stem) for path in (ROOT / "conf").glob("*/*.yaml") if path.parent.name != "hydra"
)


def composed(*overrides: str) -> DictConfig:
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        config = compose("train", overrides, return_hydra_config=True)
    HydraConfig.instance().set_config(config)
    return config


def targets(node: object) -> list[str]:
    if isinstance(node, dict):
        own = [node["_target_"]] if "_target_" in node else []
        return own + [t for value in node.values() for t in targets(value)]
    return []


@pytest.mark.parametrize(("group", "name"), GROUPS)
def test_every_yaml_composes_and_its_targets_exist(group: str, name: str) -> None:
    config = composed(f"{group}={name}")
    del config.hydra
    plain = OmegaConf.to_container(config, resolve=True)
    assert targets(plain)
    for target in targets(plain):
        assert callable(get_object(target))


def test_the_defaults_are_the_stateful_protocol() -> None:
    config = composed()
    assert (config.data.batch_size, config.data.bptt, config.data.min_freq) == (64, 8, 3)
    assert (config.data.val, config.data.lowercase, config.data.vocab_from) == (107146, True, "train")
    assert (config.optimizer.lr, config.trainer.max_epochs) == (1e-3, "auto")  # 9, as this is no text of the user's
    optimizer = torch.optim.SGD([torch.zeros(1)], lr=1.0)
    del config.hydra
    settings = check_settings(OmegaConf.to_container(config, resolve=True))
    scheduler = instantiate(fill_in_lengths(settings.schedule, 9, 1).scheduler)(optimizer)
    rates = []
    for _ in range(9):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    assert rates == pytest.approx([1.0] * 6 + [0.1] * 3)
    assert config.seed == 42
    assert HydraConfig.get().runtime.choices["model"] == "gru"


def test_every_group_has_its_place() -> None:
    groups = {group for group, _ in GROUPS}
    assert {"data", "model", "optimizer", "schedule", "trainer", "logger", "callbacks"} <= groups
    assert all(path.suffix == ".yaml" for path in Path("conf").rglob("*") if path.is_file())


@pytest.mark.parametrize(
    ("target", "trusted"),
    [
        ("torch.optim.Adam", True),
        ("torch.optim.lr_scheduler.StepLR", True),
        ("charlm.training.schedulers.sgdr", True),
        ("charlm.training.callbacks.samples.Samples", True),
        ("pytorch_lightning.callbacks.EarlyStopping", True),
        ("pytorch_lightning.callbacks.ModelCheckpoint", False),  # would delete files that a config names
        ("torch.optim.optimizer.register_optimizer_step_pre_hook", False),
        ("torch.optim.swa_utils.update_bn", False),
        ("charlm.text.sources.os.system", False),
        ("charlm.text.sources._bytes", False),
        ("charlm.run.experiment.run", False),
        ("charlm.schedulesque.step", False),
        ("os.system", False),
        ("", False),
        (None, False),
        (["torch.optim.Adam"], False),
    ],
)
def test_a_config_makes_only_what_is_trusted(target: object, trusted: bool) -> None:
    assert is_trusted(target) is trusted


def test_the_user_may_trust_more(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CHARLM_TRUST", "collections,json.decoder")
    assert is_trusted("collections.OrderedDict") and is_trusted("json.decoder.JSONDecoder")
    assert not is_trusted("json.load") and not is_trusted("os.system")
