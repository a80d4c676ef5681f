"""Train a character language model: python train.py model=gru"""

import os

import hydra
from omegaconf import DictConfig

from charlm.cli import exit_cleanly


@hydra.main(version_base="1.3", config_path="conf", config_name="train")
def main(config: DictConfig) -> float:
    """Run one training job; its value is the best validation loss, for Hydra's sweepers."""
    # PyTorch's threads spin while they wait for one another: 1/6 of the speed is left when another program is
    # busy. A shorter spin costs nothing on an idle machine. Read when PyTorch is loaded.
    os.environ.setdefault("GOMP_SPINCOUNT", "10000")
    with exit_cleanly():
        from charlm.train import run  # PyTorch and Lightning load only when there is work to do

        return run(config)


if __name__ == "__main__":
    with exit_cleanly():
        main()
