"""The engine for the board, compiled on the host: wheels and static tools for arm64.

A board that compiles llama-cpp-python itself works for an hour, and one that is given a wheel for
another core dies of SIGILL. So the host compiles once: one wheel that carries a kernel library per
Arm generation and loads the best that the core can run, cut to what is needed, tagged by the
symbols it really asks for, the same bytes from the same inputs, cached.
"""
