"""Rehearse a bundle before a board is touched: the board's core type, its Python, its free memory.

found = rehearse(open_bundle("out"), find_profile("raspberry-pi-4b-4gb"))
found.ok, found.text, found.agreement, found.memory, found.problem
"""

from boardfit.converters.board.rehearse.options import Options
from boardfit.converters.board.rehearse.rehearsal import rehearse
from boardfit.converters.board.rehearse.result import Problem, Rehearsal

__all__ = ["Options", "Problem", "Rehearsal", "rehearse"]
