"""What a model costs on a board: bytes and seconds, as pure functions, each with its source.

`kernels` says which weights the engine repacks and how fast its kernels multiply, `memory` how many
bytes a run takes, `compute_buffer` what the graph needs beside weights and KV, `speed` how long a
token takes. The engine is llama.cpp (the tree inside llama-cpp-python 0.3.36); file names in the
docstrings are its files.
"""
