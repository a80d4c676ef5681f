"""Where figures go besides the run folder's own files. Each function serves one ``conf/logger/*.yaml``."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

from pytorch_lightning.loggers import CSVLogger, Logger, WandbLogger

from charlm.options import choice


def wandb_logger(
    folder: Path,
    config: dict[str, Any],
    sweep: str | None,
    project: str,
    mode: str,
    group: str | None,
    tags: list[str],
) -> Logger:
    """A W&B run in `folder`, silent on the console.

    `mode` "auto" is online when the user is logged in (or as ``WANDB_MODE`` says), else offline: no
    account is needed and nothing is asked.
    """
    choice("logger.mode", mode, ("auto", "online", "offline"))
    os.environ.setdefault("WANDB_SILENT", "true")
    os.environ.setdefault("WANDB_CONSOLE", "off")
    import wandb

    options: dict[str, Any] = {"config": config, "tags": list(tags), "dir": folder}
    options |= {"project": project, "name": folder.name, "group": group or sweep}
    try:
        if mode == "auto":
            logged_in = wandb.login(prompt=False, verify=False)
            mode = os.environ.get("WANDB_MODE") or ("online" if logged_in else "offline")
        run = wandb.init(mode=mode, settings=wandb.Settings(init_timeout=30), **options)  # type: ignore[arg-type]
    except wandb.Error as error:
        print(f"W&B does not answer ({str(error).splitlines()[0]}): logging offline", file=sys.stderr)
        run = wandb.init(mode="offline", **options)
    return WandbLogger(experiment=run)


def csv_logger(folder: Path, config: dict[str, Any], sweep: str | None) -> Logger:
    """Every logged step in ``csv/metrics.csv``."""
    return CSVLogger(save_dir=folder, name="csv", version="")


def no_logger(folder: Path, config: dict[str, Any], sweep: str | None) -> Logger | None:
    """Nothing besides the run folder's own files."""
    return None
