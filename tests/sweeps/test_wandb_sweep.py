"""docs/wandb_sweep.yaml: the command that W&B's agent makes of it is run, offline."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Any

import yaml
from wandb.sdk.launch.sweeps.utils import create_sweep_command, create_sweep_command_args
from wandb.sdk.lib.config_util import save_config_file_from_dict

from tests.helpers import ROOT, SMALL, summary, wandb_records
from tests.programs import environment

SWEEP: dict[str, Any] = yaml.safe_load((ROOT / "docs/wandb_sweep.yaml").read_text())
CHOSEN = {"model": "lstm", "model.hidden_size": 16, "optimizer.lr": 0.00271}


def test_an_agent_of_wandb_drives_train_py(text_file: Path, tmp_path: Path) -> None:
    assert CHOSEN.keys() == SWEEP["parameters"].keys()
    chosen = {name: {"value": value} for name, value in CHOSEN.items()}
    macros = create_sweep_command_args({"args": chosen})
    macros |= {"env": ["/usr/bin/env"], "interpreter": ["python"], "program": [SWEEP["program"]]}
    command = []
    for part in create_sweep_command(SWEEP["command"]):
        command += macros[part[2:-1]] if part.startswith("${") else [part]
    assert command[:3] == ["/usr/bin/env", "python", "train.py"]
    save_config_file_from_dict(str(tmp_path / "chosen.yaml"), chosen)
    agent = {
        "WANDB_MODE": "offline",
        "WANDB_PROJECT": "charlm",
        "WANDB_SWEEP_ID": "abc123",
        "WANDB_RUN_ID": "run456",
        "WANDB_SWEEP_PARAM_PATH": str(tmp_path / "chosen.yaml"),
    }
    run = tmp_path / "run"
    options = [*(option for option in SMALL if not option.startswith("logger")), "data=text", f"data.path={text_file}"]
    options = [option for option in options if not option.startswith("model.hidden_size")]
    done = subprocess.run(
        [*command, *options, "data.bptt=8", f"hydra.run.dir={run}"],
        cwd=ROOT,
        env={**environment(tmp_path), **agent},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0 and done.stderr == "", done
    made = summary(run)
    assert (made["model"], made["learning_rate"]) == ("lstm", 0.00271)
    (file,) = run.glob("wandb/offline-run-*/*.wandb")
    records = list(wandb_records(file))
    (begun,) = [record.run for record in records if record.run.run_id]
    assert (begun.run_id, begun.sweep_id, begun.project) == ("run456", "abc123", "charlm")
    keys = {item.key or "/".join(item.nested_key) for record in records for item in record.history.item}
    assert SWEEP["metric"]["name"] in keys
