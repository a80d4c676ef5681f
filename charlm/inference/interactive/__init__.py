"""Writing together with a model in the terminal: sample.py --interactive."""
