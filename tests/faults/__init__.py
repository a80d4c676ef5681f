"""Kill runs for real, resume them, and compare them with runs that nobody killed: ``python -m tests.faults``."""
