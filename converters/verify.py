"""Checks of what goes into a bundle: the vocabulary before the hours of quantizing, the file after.

The vocabulary is compared by behaviour with the source's own tokenizer (see
`converters.tokenizers.verify`); the file is linted, loaded and made to generate.
"""

from __future__ import annotations

import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import Any

from converters.source.spec import ModelSpec
from converters.tokenizers.verify import verify_vocabulary
from converters.tokenizers.vocab_file import write_vocab_entries
from edge.engines import EngineSettings, open_engine
from edge.errors import DoesNotFitError, IntegrityError
from edge.gguf import read_header
from edge.types import GenerationConfig

N_TRIAL_TOKENS = 8
_TRIAL_CONTEXT = 256


def check_vocabulary(spec: ModelSpec) -> dict[str, Any]:
    """Write the vocabulary alone to a temporary GGUF, load it in the engine and compare it with the
    source's tokenizer. A GGUF source has none to compare with: its vocabulary is copied.

    Raises IntegrityError that shows the first string that differs.
    """
    if spec.tokenizer_dir is None:
        return {"vocabulary": "copied from the source GGUF"}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "vocabulary.gguf"
        write_vocab_entries(spec.metadata, path)
        report = verify_vocabulary(path, spec.tokenizer_dir)
    return {"vocabulary": asdict(report)}


def check_artifact(path: Path, spec: ModelSpec) -> dict[str, Any]:
    """Lint a written file, load it, and generate a few tokens from it.

    Raises IntegrityError when the file is not what was planned or generates nothing; EngineError
    when the engine refuses it. A model too large for this host's memory is not test-run; the
    result says so.
    """
    header = read_header(path)
    if len(header.tensors) != len(spec.tensors):
        raise IntegrityError(
            f"{path.name} holds {len(header.tensors)} tensors, {len(spec.tensors)} were planned"
        )
    # Without repacking: this only asks whether the file works, in as little memory as it can.
    settings = EngineSettings(
        n_ctx=min(_TRIAL_CONTEXT, spec.shape.n_ctx_train), n_batch=64, n_ubatch=64, repack=False
    )
    try:
        engine = open_engine("llama_cpp", path, settings)
    except DoesNotFitError as error:
        return {"engine": f"not test-run on the host: {error}"}
    try:
        prompt = engine.tokenize("Hello") or [0]
        config = GenerationConfig(max_tokens=N_TRIAL_TOKENS, ignore_eos=True)
        events = list(engine.stream(prompt, config))
        info = engine.describe()
    finally:
        engine.close()
    n_tokens = sum(event.token_id is not None for event in events)
    if n_tokens != N_TRIAL_TOKENS:
        raise IntegrityError(f"{path.name}: asked for {N_TRIAL_TOKENS} tokens, it gave {n_tokens}")
    return {"engine": {"name": info.name, "version": info.version, "n_tokens": n_tokens}}
