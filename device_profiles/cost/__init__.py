"""What a model costs on a board: bytes and seconds, as pure functions, each with its source.

`kernels` knows which weights the engine repacks and how fast its kernels multiply. `memory` counts
the bytes of a run, `compute_buffer` what the graph needs beside weights and KV. `speed` computes
how long a token takes. The engine is llama.cpp (the tree inside llama-cpp-python 0.3.36). File
names in the docstrings are its files.
"""
