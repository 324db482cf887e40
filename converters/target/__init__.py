"""Writers of artifacts, one format per file."""
