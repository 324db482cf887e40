"""Whether the engine knows an architecture, asked before anything is planned or quantized."""

from __future__ import annotations

import re
import tempfile
from pathlib import Path

from gguf import MODEL_ARCH_NAMES, GGUFValueType

from boardfit.converters.families.registry import needed_engine
from boardfit.converters.spec import KeyValue
from boardfit.converters.tokenizers.engine_vocab import open_vocab
from boardfit.converters.tokenizers.vocab_file import write_vocab_entries
from boardfit.edge.errors import EngineError, EngineMissingError, UnsupportedModelError
from boardfit.edge.units import printable

_PLAIN = re.compile(r"[\w.-]{1,64}")


def require_known_architecture(arch: str, path: Path) -> None:
    """Raises UnsupportedModelError for an architecture that neither `gguf` nor the engine knows."""
    if arch in MODEL_ARCH_NAMES.values() or (_PLAIN.fullmatch(arch) and _engine_knows(arch)):
        return
    raise UnsupportedModelError(
        f"{path}: its architecture is {printable(arch, 60)!r}, which this llama.cpp does not know"
        f"{needed_engine(arch)}",
        next_step="a newer boardfit may bring an engine that knows it. "
        "Ollama has names of its own for some models: use a GGUF that was made for llama.cpp",
    )


def _engine_knows(arch: str) -> bool:
    """Ask the engine with a file that holds nothing but the name. False without an engine."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "architecture.gguf"
        write_vocab_entries([KeyValue("general.architecture", arch, GGUFValueType.STRING)], path)
        try:
            with open_vocab(path):
                return True
        except EngineMissingError:
            return False
        except EngineError as error:
            return "unknown model architecture" not in str(error)
