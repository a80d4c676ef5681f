"""What a continuation may be: characters of a set, regular expressions, JSON schemas."""
