"""What families share: ways to run a recurrence over time."""
