"""The embedded sample model: small, real, trained by us, so that a first run needs no download.

A four-layer Llama of 3.7 million weights turns a request into one line of JSON and answers a few
dozen questions about itself. Because every expected answer is known, quality after a 4-bit recipe
is measured as a task (exact match), not guessed from perplexity. `scripts/lab/sample` made it.
"""

from pathlib import Path

# Some installers link every file into a cache; the folder there holds the files themselves.
MODEL_DIR = Path(__file__).resolve().parent / "model"

__all__ = ["MODEL_DIR"]
