"""Train a character language model: python train.py model=gru"""

import sys
from pathlib import Path
from typing import Any

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig, ListConfig, OmegaConf

from charlm.checkpoint.paths import made, model_name, removed_if_empty, run_folder, run_name, top_folder
from charlm.cli import exit_cleanly, fail, forgiving_output, quick_imports
from charlm.errors import UsageError
from charlm.run.environment import RANK, as_one_of_several, of_this_rank
from charlm.run.suggest import arguments
from charlm.sweeps.command import expanded
from charlm.sweeps.watch import sweeping


def chosen_model(choice: str, overrides: ListConfig) -> str:
    """`model_name` of overrides in which nothing is resolved: ${…} may refer to other options."""
    plain: Any = OmegaConf.to_container(overrides, resolve=False)
    return model_name(choice, plain)


for resolver in (run_folder, run_name, chosen_model, top_folder):  # for hydra.run.dir
    OmegaConf.register_new_resolver(resolver.__name__, resolver, replace=True)
OmegaConf.register_new_resolver("sweep_folder", made, replace=True, use_cache=True)  # the jobs are told the result


@hydra.main(version_base="1.3", config_path="conf", config_name="train")
def main(config: DictConfig) -> float:
    """Run one training job; its value is the best validation loss, for Hydra's sweepers."""
    job = HydraConfig.get()
    try:
        with removed_if_empty(Path(job.runtime.output_dir), new=config.resume is None and RANK == 0):
            with quick_imports():  # only when there is work to do
                from charlm.run.compose import job_from_hydra
                from charlm.run.tasks import perform
                from charlm.sweeps.job import perform_job
                from charlm.sweeps.search import search

            if config.task == "search":
                return search(*job_from_hydra(config)).nats
            return perform_job(config) if job.mode == RunMode.MULTIRUN else perform(*job_from_hydra(config))
    except UsageError as error:
        fail(str(error))


if __name__ == "__main__":
    with forgiving_output(), as_one_of_several(), exit_cleanly():
        if {"-h", "--help"} & set(sys.argv[1:]):
            with quick_imports():
                from charlm.run.reference import print_help

            print_help([argument.partition(",")[0] for argument in sys.argv[1:] if "=" in argument])
            sys.exit()
        sys.argv[1:] = of_this_rank(expanded(arguments(sys.argv[1:])))
        with sweeping():
            main()
