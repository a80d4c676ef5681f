"""Decoding by search, on ids: beams, endings of words, fillings of gaps."""
