"""Train a character language model: python train.py model=gru"""

import sys
from contextlib import suppress
from pathlib import Path

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from charlm.checkpoint.paths import model_name, run_folder, run_name
from charlm.cli import exit_cleanly, fail, forgiving_output, quick_imports
from charlm.errors import UsageError
from charlm.run.suggest import arguments
from charlm.sweeps.command import expanded
from charlm.sweeps.watch import sweeping

for resolver in (run_folder, run_name, model_name):  # for hydra.run.dir
    OmegaConf.register_new_resolver(resolver.__name__, resolver, replace=True)


@hydra.main(version_base="1.3", config_path="conf", config_name="train")
def main(config: DictConfig) -> float:
    """Run one training job; its value is the best validation loss, for Hydra's sweepers."""
    try:
        with quick_imports():  # only when there is work to do
            from charlm.run.compose import job_from_hydra
            from charlm.run.tasks import perform
            from charlm.sweeps.job import perform_job

        if HydraConfig.get().mode == RunMode.MULTIRUN:
            return perform_job(config)
        return perform(*job_from_hydra(config))
    except (UsageError, KeyboardInterrupt) as error:
        if config.resume is None:
            with suppress(OSError):  # leave no empty folder behind
                Path(HydraConfig.get().runtime.output_dir).rmdir()
        if isinstance(error, KeyboardInterrupt):
            raise
        fail(str(error))


if __name__ == "__main__":
    with forgiving_output(), exit_cleanly():
        if {"-h", "--help"} & set(sys.argv[1:]):
            with quick_imports():
                from charlm.run.reference import print_help

            print_help([argument.partition(",")[0] for argument in sys.argv[1:] if "=" in argument])
            sys.exit()
        sys.argv[1:] = expanded(arguments(sys.argv[1:]))
        with sweeping():
            main()
