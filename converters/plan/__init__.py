"""Plan a model for a board: what fits, how fast, how good, and why."""
