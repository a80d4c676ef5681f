"""From logits to a loss and better weights."""
