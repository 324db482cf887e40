"""Text that lies beside a module as a file of its own: shell scripts and units for boards."""

from __future__ import annotations

import re
from pathlib import Path


def read_text_beside(module: str, name: str, /, **values: object) -> str:
    """The file `name` beside the module file `module`, each `@NAME@` in it replaced by the value of
    that name. A value is not looked into. Raises KeyError for a name without a value.
    """
    text = Path(module).with_name(name).read_text(encoding="utf-8")
    return re.sub(r"@([A-Z_]+)@", lambda found: str(values[found[1].lower()]), text)
