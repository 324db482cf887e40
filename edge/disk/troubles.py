"""Errors by parts of what the system or a program printed. The tables are data, beside modules."""

from __future__ import annotations

import functools
from typing import Any

import boardfit.edge.errors as errors
from boardfit.device_profiles.toml_parser import decode_toml
from boardfit.edge.disk.data_files import read_text_beside


@functools.cache
def _read_rows(module: str, name: str) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = decode_toml(read_text_beside(module, name))["trouble"]
    return rows


def find_trouble(module: str, name: str, output: str, **words: object) -> errors.EdgeError | None:
    """The error of the first row of the table `name`, beside the file `module`, that has a part of
    `output`. `words` fill its message and next step. None when no row has one.
    """
    for row in _read_rows(module, name):
        if any(part in output for part in row["parts"]):
            kind: type[errors.EdgeError] = getattr(errors, row["error"])
            return kind(row["message"].format(**words), next_step=row["next_step"].format(**words))
    return None
