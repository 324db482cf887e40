"""Rehearse a bundle before a flash, if the host's packages are installed.

It lives on the host side, which the board's half never imports: the command is run as a process.
"""

from __future__ import annotations

import importlib.util
import json

from boardfit.edge.bundle.bundle import Bundle
from boardfit.edge.errors import EngineError
from boardfit.edge.flash.gate import has_engine
from boardfit.edge.process.child import decode_output, python_argv, run_child
from boardfit.edge.requirements import install_line
from boardfit.edge.terminal.progress import Reporter
from boardfit.edge.units import printable


def rehearse(bundle: Bundle, reporter: Reporter) -> str | None:
    """Rehearse a bundle that carries an engine; a note for the report, or None when there was
    nothing to rehearse.

    Raises EngineError with what the rehearsal found.
    """
    if not has_engine(bundle):
        return None
    if not is_available():
        return f"not rehearsed: the host's packages are not installed ({install_line('host')})"
    reporter.stage(f"rehearsing on an emulated {bundle.plan.device}")
    path = str(bundle.path.absolute())
    done = run_child(python_argv("boardfit", "rehearse", path, "--json"))
    lines = decode_output(done.stdout).strip().splitlines()
    try:
        record = json.loads(lines[-1]) if lines else {}
    except ValueError:
        record = {}
    if done.returncode != 0:
        message = str(record.get("message") or decode_output(done.stderr).strip() or "no message")
        raise EngineError(
            f"the rehearsal of {bundle.path} failed: {printable(message, 600)}",
            next_step=record.get("next_step") or "use --no-rehearse to flash without it",
        )
    return "rehearsed"


def is_available() -> bool:
    """Whether the host's side of boardfit is installed, which rehearses."""
    return importlib.util.find_spec("boardfit.converters") is not None
