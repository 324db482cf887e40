"""Runs in the pinned "onnx" environment, through `converters.worker.run_worker`; see `export`.

Nothing here may import more of edgekit than `edge.errors` and its neighbours of the standard
library: that environment has torch, transformers and the ONNX builder, and no edgekit.
"""
