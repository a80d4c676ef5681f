"""Self-contained checkpoint files, opened without running code from them."""
