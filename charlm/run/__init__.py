"""From a config to a run folder. The only package that knows Hydra."""
