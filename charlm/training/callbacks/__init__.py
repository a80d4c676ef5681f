"""Observers of a training run. None of them changes what is learnt."""
