"""Exports checkpoints with upstream's litert-torch, all in one process because importing it takes
longer than a tiny model does. Run by the interpreter that has it:

    python export_litert.py '[{"checkpoint": …, "out": …, "prefill": [8, 64], "n_ctx": 1024}, …]'
"""

from __future__ import annotations

import json
import sys


def main() -> None:
    from litert_torch.generative.export_hf.export import export

    for job in json.loads(sys.argv[1]):
        export(
            job["checkpoint"],
            job["out"],
            prefill_lengths=job["prefill"],
            cache_length=job["n_ctx"],
            quantization_recipe=job["recipe"],
        )


if __name__ == "__main__":
    main()
