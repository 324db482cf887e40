"""What a board needs besides the model, in the bundle: wheels, installer, service unit, licences.

wheels/*.whl                 engine, numpy, psutil, click, jinja2, … and boardfit itself
board/install.sh, .py        unpack them on the board: no network, no compiler, no pip
board/boardfit.service       a hardened systemd unit; optional to use
tools/<variant>/llama-*      static programs instead of wheels, for phones
licenses/third-party.txt     what all of this is licensed under
"""
