"""What a board needs besides the model, in the bundle: wheels, installer, service unit, licences.

wheels/*.whl                 engine, numpy, psutil, click, jinja2, … and boardfit itself
board/install.sh, .py        unpack them on the board: no network, no compiler, no pip
board/boardfit.service       a hardened systemd unit; optional to use
tools/<variant>/llama-*      static programs instead of wheels, for phones
licenses/third-party.txt     what all of this is licensed under
"""

from boardfit.converters.board.offline.parts import OfflineParts, add_engine, check_board
from boardfit.converters.board.offline.rebundle import bundle_with_engine
from boardfit.converters.board.offline.target import BoardPython, board_python

__all__ = [
    "BoardPython",
    "OfflineParts",
    "add_engine",
    "board_python",
    "bundle_with_engine",
    "check_board",
]
