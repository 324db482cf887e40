"""Rehearse a bundle before a board is touched: the board's core type, its Python, its free memory.

`rehearsal.rehearse` does it all. `result` has what it takes and gives, `sandbox` the
board's system, `cpu` and `limits` its hardware, `guest` what runs inside.
"""
