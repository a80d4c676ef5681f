"""The lesson's own networks."""
