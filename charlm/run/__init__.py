"""From a config to a run folder: the only package that knows Hydra."""
