"""Ways to run a recurrence over time, shared by the families."""
