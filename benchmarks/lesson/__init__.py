"""The lesson's systems side by side with the lesson's own figures: python -m benchmarks.lesson"""
