"""What runs inside the pinned LiteRT environment, where no edgekit is installed: `worker.py`."""
