"""From a checkpoint to text and numbers."""
