"""The engine `tflite`: a plain `.tflite` of a language model, its tokenizer beside it.

It runs on the installed one of these: ai-edge-litert, through the same C interface as the engine
`litert` (no copy of the KV cache, a stop is honoured inside a step), or tflite-runtime 2.14, a
wheel of 2 MB for boards with an old system, through its interpreter (a stop waits for the end of a
step, so steps are kept short while a stop is possible).

The file comes from `edge build --format tflite`, or from litert-torch's export_hf with bundling
turned off. In its folder lie `tokenizer.json` and, as far as the model has them,
`tokenizer_config.json`, `generation_config.json` and `chat_template.jinja`.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable

from boardfit.edge.disk.opened_file import OpenedFile
from boardfit.edge.engines.hf_tokenizer import HfTokenizer
from boardfit.edge.engines.litert.signature_engine import SignatureEngine, SignatureModel
from boardfit.edge.engines.litert.tflite_check import check_tflite
from boardfit.edge.engines.settings import EngineSettings
from boardfit.edge.errors import EngineMissingError
from boardfit.edge.requirements import install_line

PACKAGES = ("ai_edge_litert", "tflite_runtime")


class TfliteEngine(SignatureEngine):
    """See the module."""

    name = "tflite"

    @classmethod
    def open(
        cls,
        path: OpenedFile,
        settings: EngineSettings,
        *,
        progress: Callable[[int, int], None] | None = None,
        package: str | None = None,
    ) -> TfliteEngine:
        """Check the file and the memory, load. `package` is one of `PACKAGES`; None takes the first
        that is installed. See `boardfit.edge.engines.open_engine` for errors.
        """
        header = check_tflite(path)
        model = SignatureModel(path, 0, header.n_bytes, header, HfTokenizer.of_model(path))
        package = package or next((p for p in PACKAGES if importlib.util.find_spec(p)), None)
        if package is None:
            raise EngineMissingError(
                "neither ai-edge-litert nor tflite-runtime is installed",
                next_step=install_line("tflite"),
            )
        return cls.load(model, package, settings, progress)
