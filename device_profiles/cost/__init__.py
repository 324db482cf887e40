"""What a model costs on a board, as pure functions with sources: files of llama-cpp-python
0.3.36.
"""
