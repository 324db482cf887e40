"""Tools that disagree about versions, each in its own pinned environment."""
