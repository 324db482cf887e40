"""What runs inside the pinned LiteRT environment: no edgekit is installed there (see `worker.py`)."""
