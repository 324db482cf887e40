"""Check the contents of a bundle: the vocabulary before the hours of quantizing, the file after.

The vocabulary is compared by behaviour with the source's own tokenizer (see
`boardfit.converters.tokenizers.verify`); the file is linted, loaded and made to generate.
"""

import tempfile
from collections.abc import Mapping
from contextlib import closing
from dataclasses import asdict
from pathlib import Path
from typing import Any

from boardfit.converters.documents import has_file, read_text
from boardfit.converters.quality.divergence import check_working
from boardfit.converters.spec import ModelSpec
from boardfit.converters.tokenizers import turns
from boardfit.converters.tokenizers.files import TokenizerFiles
from boardfit.converters.tokenizers.verify import verify_vocabulary
from boardfit.converters.tokenizers.vocabulary import write_vocab_entries
from boardfit.edge.engines import EngineSettings, is_installed, open_engine
from boardfit.edge.engines.model_file import built_file
from boardfit.edge.engines.settings import usable_cpus
from boardfit.edge.errors import DoesNotFitError, IntegrityError, UsageError
from boardfit.edge.files.gguf import read_header
from boardfit.edge.types import GenerationConfig, LogitsEngine, Plan, Thinking

N_TRIAL_TOKENS = 8
_TRIAL_CONTEXT = 256
_TRIAL_TEXTS = ("Hello world", " 12 345,6 \n\n\tif x:", "naïve café – 東京 🙂", "don't I'LL we've")


def check_vocabulary(spec: ModelSpec, *, accept_normalization: bool = False) -> dict[str, Any]:
    """Load the vocabulary alone in the engine and compare it with the source's tokenizer; a GGUF
    source has none. Raises IntegrityError that shows the first string that differs.
    `accept_normalization` goes on where only the checkpoint's normalizer explains the differences.
    """
    if spec.tokenizer_dir is None:
        return {"vocabulary": "copied from the source GGUF"}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "vocabulary.gguf"
        write_vocab_entries(spec.metadata, path)
        report = verify_vocabulary(
            path,
            spec.tokenizer_dir,
            accept_normalization=accept_normalization,
            generates=not spec.is_embedder,
        )
    return {"vocabulary": asdict(report)}


def check_template(
    spec: ModelSpec, thinking: Thinking, variables: Mapping[str, Any]
) -> dict[str, Any]:
    """Put marker words through the source's chat template, for a GGUF source too. Raises InputError
    or UnsafeInputError for one that would fail, or lose words, on the board.
    """
    if spec.chat_template is None:
        if thinking != "auto" or variables:
            raise UsageError(
                f"{spec.name} has no chat template, which thinking and template variables are for",
                next_step="leave --thinking and --template-var out",
            )
        return {}
    return {"chat_template": turns.check_words(spec.chat_template, thinking, variables)}


def find_tools(spec: ModelSpec) -> dict[str, Any]:
    """How the model writes calls of tools, and how that is known, for the manifest."""
    if spec.chat_template is None or spec.is_embedder:
        return {}
    from boardfit.edge.template.tool_proof import find_tool_format

    folder = spec.tokenizer_dir
    stated = TokenizerFiles(folder, {}).tokenizer_config if folder else {}
    form = find_tool_format(spec.chat_template, stated.get("response_template"))
    return {"tools": form.to_dict()}


def check_artifact(path: Path, spec: ModelSpec) -> dict[str, Any]:
    """Lint a written file, load it, and generate a few tokens from it. Raises IntegrityError when
    the file is not what was planned or generates nothing; EngineError when the engine refuses it. A
    model too large for this host's memory is not test-run; the result states it.
    """
    header = read_header(path)
    if len(header.tensors) != len(spec.tensors):
        raise IntegrityError(
            f"{path.name} holds {len(header.tensors)} tensors, {len(spec.tensors)} were planned"
        )
    if spec.is_embedder:
        return try_vectors(path, spec)
    # Without repacking: this only asks whether the file works, in as little memory as it can.
    settings = EngineSettings(
        n_ctx=min(_TRIAL_CONTEXT, spec.shape.n_ctx_train), n_batch=64, n_ubatch=64, repack=False
    )
    return try_out(path, "llama_cpp", settings, check_loss=True)


def try_vectors(path: Path, spec: ModelSpec) -> dict[str, Any]:
    """Make vectors of the trial texts. Raises IntegrityError where two have the same."""
    from boardfit.edge.engines.llama.embedding import LlamaEmbedder

    settings = EngineSettings(n_ctx=min(_TRIAL_CONTEXT, spec.shape.n_ctx_train), repack=False)
    try:
        embedder = LlamaEmbedder.open(built_file(path), settings)
    except DoesNotFitError as error:
        return {"engine": f"not test-run on the host: {error}"}
    with closing(embedder):
        vectors = {tuple(embedder.embed(text)[0]) for text in _TRIAL_TEXTS}
        if len(vectors) != len(_TRIAL_TEXTS):
            raise IntegrityError(f"{path.name}: different texts become the same vector")
        made = {"pooling": embedder.pooling, "n_embd": embedder.n_embd}
        return {"engine": {**embedder.to_record(), **made}}


def check_in_engine(path: Path, plan: Plan, spec: ModelSpec) -> dict[str, Any]:
    """Try a converted artifact in the engine of its plan: read some texts as the source's tokenizer
    does, and generate. Raises IntegrityError when it does not, EngineError when the engine refuses
    it.
    """
    if not is_installed(plan.engine):
        return {"engine": f"not test-run: {plan.engine} is not installed on the host"}
    settings = EngineSettings.from_plan(plan).replace(n_threads=usable_cpus(), need_bytes=None)
    return try_out(path, plan.engine, settings, expected=expected_ids(spec))


def expected_ids(spec: ModelSpec) -> dict[str, list[int]]:
    """What the source's own tokenizer makes of the trial texts; nothing without tokenizer.json."""
    path = None if spec.tokenizer_dir is None else spec.tokenizer_dir / "tokenizer.json"
    if path is None or not has_file(path):
        return {}
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_str(read_text(path))
    return {text: tokenizer.encode(text, add_special_tokens=False).ids for text in _TRIAL_TEXTS}


def try_out(
    path: Path,
    engine_name: str,
    settings: EngineSettings,
    *,
    expected: Mapping[str, list[int]] | None = None,
    check_loss: bool = False,
) -> dict[str, Any]:
    """Open, compare token ids with `expected`, generate a few tokens. `check_loss` refuses weights
    that are spoilt, though finite; a file that is not converted is not measured otherwise.
    """
    try:
        engine = open_engine(engine_name, built_file(path), settings)
    except DoesNotFitError as error:
        return {"engine": f"not test-run on the host: {error}"}
    with closing(engine):
        for text, ids in (expected or {}).items():
            if (got := engine.tokenize(text)) != ids:
                raise IntegrityError(
                    f"{path.name}: {engine_name} reads {text!r} as {got}, the source as {ids}"
                )
        prompt = engine.tokenize("Hello") or [0]
        config = GenerationConfig(max_tokens=N_TRIAL_TOKENS, ignore_eos=True)
        events = list(engine.stream(prompt, config))
        info = engine.describe()
        trial = engine.tokenize(_TRIAL_TEXTS[0]) if check_loss else []
        if len(trial) > 1 and isinstance(engine, LogitsEngine):
            check_working(engine.logits(trial), trial)
    n_tokens = sum(event.token_id is not None for event in events)
    if n_tokens != N_TRIAL_TOKENS:
        raise IntegrityError(f"{path.name}: asked for {N_TRIAL_TOKENS} tokens, it gave {n_tokens}")
    return {"engine": {"name": info.name, "version": info.version, "n_tokens": n_tokens}}
