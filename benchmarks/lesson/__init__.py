"""Train the lesson's systems and compare them with its figures: python -m benchmarks.lesson."""
