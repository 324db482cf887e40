"""Text that lies beside a module as a file of its own: shell scripts and units for boards."""

import functools
import re
from pathlib import Path
from typing import Any

import boardfit.edge.errors as errors
from boardfit.device_profiles.toml_parser import decode_toml


def read_text_beside(module: str, name: str, /, **values: object) -> str:
    """The file `name` beside the module file `module`, each `@NAME@` in it replaced by the value of
    that name. A value is not looked into. Raises KeyError for a name without a value.
    """
    text = Path(module).with_name(name).read_text(encoding="utf-8")
    return re.sub(r"@([A-Z_]+)@", lambda found: str(values[found[1].lower()]), text)


@functools.cache
def _read_rows(module: str, name: str) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = decode_toml(read_text_beside(module, name))["trouble"]
    return rows


def find_trouble(
    module: str, name: str, output: str, /, **words: object
) -> errors.EdgeError | None:
    """The error of the first row of the table `name`, beside the file `module`, that has a part of
    `output`. `words` fill its message and next step. None when no row has one.
    """
    for row in _read_rows(module, name):
        if any(part in output for part in row["parts"]):
            kind: type[errors.EdgeError] = getattr(errors, row["error"])
            return kind(row["message"].format(**words), next_step=row["next_step"].format(**words))
    return None
