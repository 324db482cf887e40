"""Runs in the pinned "onnx" environment, through `boardfit.converters.formats.tools.worker.run_worker`; see
`export`.

Nothing here may import more of boardfit than `boardfit.edge.errors` and its neighbours of the
standard library: that environment has torch, transformers and the ONNX builder, and no boardfit.
"""
