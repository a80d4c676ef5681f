"""Kill real runs, resume them, and compare them with uninterrupted runs: ``python -m tests.faults``."""
