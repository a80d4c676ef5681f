"""Training: objective, optimiser, scheduler, metrics and callbacks around a network."""
