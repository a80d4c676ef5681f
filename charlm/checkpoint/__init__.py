"""One self-contained file on disk, opened without running code from it."""
