"""A checkpoint of no family of ours → a GGUF by upstream's own converter → `ModelSpec`.

CACHE/converted/<key>/model.gguf     the newest conversion, for plans and builds after this one
CACHE/converted/<key>/tools.json     versions of what made it
"""

import contextlib
import hashlib
import json
import math
import re
import tempfile
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from boardfit.converters.board.engine.source import PACKAGE, VERSION
from boardfit.converters.documents import (
    MODULES,
    companion_notes,
    has_file,
    module_files,
    read_json_object,
    read_modules,
)
from boardfit.converters.formats.tools.environments import (
    check_disk,
    check_memory,
    load_environments,
    one_maker,
    tool_python,
)
from boardfit.converters.formats.tools.worker import Cage, run_worker
from boardfit.converters.formats.upstream.tree import (
    NOT_YET,
    SCRIPT,
    converter_tree,
    known_architectures,
)
from boardfit.converters.source import resolve
from boardfit.converters.source.checkpoint import (
    INDEX,
    AdapterRequest,
    SafetensorsCheckpoint,
    adapter_notes,
)
from boardfit.converters.source.gguf import open_gguf
from boardfit.converters.source.hf import (
    NoFamilyError,
    Origin,
    identify,
    is_embedder,
    refuse_other_heads,
)
from boardfit.converters.source.resolve import Mtp
from boardfit.converters.source.wrappers import RENAMED
from boardfit.converters.spec import ModelSpec
from boardfit.edge.disk.rooted import Root, work_beside
from boardfit.edge.disk.verified import cache_directory
from boardfit.edge.engines.fit import available_bytes
from boardfit.edge.errors import EngineMissingError, UnsupportedModelError, UsageError
from boardfit.edge.terminal.progress import Progress, Say
from boardfit.edge.units import MIB, printable

_WORKER = "boardfit.converters.formats.upstream.worker.convert"
#: torch, transformers and a tokenizer before the first weight.
_BASE_BYTES = 450 * MIB
#: A tensor is held in floats and as it is written: 7.3 to 7.7 bytes a value were measured.
_BYTES_PER_HELD_VALUE = 8
_VOCABULARY_BYTES = 32 * MIB
_DOCUMENTS = (".json", ".model", ".jinja", ".txt")
# Lists of files, and references to code that is never run.
_REWRITTEN = ("config.json", "tokenizer_config.json")
_EXPERT = re.compile(r"experts\.\d+")


def open_any_model(
    ref: str | Path,
    *,
    progress: Progress | None = None,
    say: Say | None = None,
    heads_only: bool = False,
    lora: AdapterRequest | None = None,
    mtp: Mtp | None = None,
) -> ModelSpec:
    """Open a model as `open_model` does; upstream's converter makes a GGUF of what has no family.

    Raises what `open_model` and `convert_checkpoint` raise, UsageError for an adapter or a choice
    of MTP heads, which upstream's converter does not take.
    """
    refusal: NoFamilyError
    try:
        return resolve.open_model(ref, progress=progress, heads_only=heads_only, lora=lora, mtp=mtp)
    except NoFamilyError as error:
        refusal = error
    for option, value in (("--lora", lora), ("--mtp", mtp)):
        if value is not None:
            raise UsageError(
                f"{option} is for families of boardfit's own; {printable(str(ref))} goes through "
                "upstream's converter",
                next_step=f"leave out {option}; edge formats --families lists the families",
            )
    if heads_only:  # the converter reads the weights themselves
        try:
            return resolve.open_model(ref, progress=progress)
        except NoFamilyError as error:
            refusal = error
    return convert_checkpoint(refusal, progress=progress, say=say)


def convert_checkpoint(
    refusal: NoFamilyError, *, progress: Progress | None = None, say: Say | None = None
) -> ModelSpec:
    """Describe the GGUF that upstream's converter makes of a checkpoint, or made before.

    Raises UnsupportedModelError for an architecture that upstream does not know either,
    EngineMissingError when the converter is not here and cannot be fetched, DoesNotFitError when
    memory or disk is short (before anything is made), InputError for a broken checkpoint.
    """
    origin, say = refusal.origin, say or (lambda text: None)
    _check_architecture(refusal)
    options = list_options(origin)
    checkpoint = SafetensorsCheckpoint(origin.directory, origin.config)
    source = identify(checkpoint, origin, None)
    folder = (
        cache_directory() / "converted" / _key(checkpoint, source.fingerprint, _folder_name(origin))
    )
    folder.parent.mkdir(parents=True, exist_ok=True)
    with one_maker(folder.parent / ".lock", say):
        if not folder.is_dir():
            _make(refusal, checkpoint, options, folder, progress, say)
        made = open_gguf(folder / "model.gguf")
        _keep_only(folder)
    if made.is_embedder and made.pooling == "none":
        raise UnsupportedModelError(
            f"{printable(made.name)} is an embedding model whose pooling is unknown: it has no "
            f"{MODULES} with a module that pools",
            next_step=f"give the repository with its {MODULES} and 1_Pooling/config.json",
        )
    tools = read_json_object(folder / "tools.json")
    by = f"{SCRIPT} ({PACKAGE} {VERSION})"
    why = "it is an embedding model" if made.is_embedder else "boardfit has no family for it"
    notes = (
        f"converted by upstream's {by}, because {why}",
        *(note for note in checkpoint.notes if not note.startswith(RENAMED)),
        *adapter_notes(origin.directory),
        *companion_notes(origin.directory),
    )
    return replace(
        made,
        family=_model_type(origin),
        source=replace(source, license=made.source.license),
        tokenizer_dir=origin.directory,
        notes=(*notes, *made.notes),
        converter={SCRIPT: f"{PACKAGE} {VERSION}", **{k: str(v) for k, v in tools.items()}},
    )


def _make(
    refusal: NoFamilyError,
    checkpoint: SafetensorsCheckpoint,
    options: list[str],
    folder: Path,
    progress: Progress | None,
    say: Say,
) -> None:
    origin = refusal.origin
    check_resources(checkpoint, folder)
    try:
        tree = converter_tree(say)
        python = tool_python("upstream", say=say)
    except EngineMissingError as error:
        raise EngineMissingError(
            f"this checkpoint (model_type {_model_type(origin)!r}) goes through upstream's "
            f"converter, which is not here: {error}",
            next_step="go online once and run the same command again. Or convert "
            f"elsewhere: python {SCRIPT} MODEL_DIR --outtype bf16 --outfile model.gguf, "
            "then give edge that model.gguf",
        ) from None
    say(f"converting with upstream's {SCRIPT}; the result is kept in {folder}")
    with (
        work_beside(folder, "conversion") as work,
        tempfile.TemporaryDirectory(prefix="boardfit-upstream-") as scratch,
    ):
        work.root.claim("made")
        made = work.path / "made"
        linked = link_checkpoint(checkpoint, Path(scratch) / _folder_name(origin))
        shown = tuple(p.resolve() for p in linked.rglob("*") if p.is_symlink())
        result = run_worker(
            python,
            _WORKER,
            {
                "tree": str(tree),
                "model": str(linked),
                "outfile": str(made / "model.gguf"),
                "outtype": choose_type(checkpoint),
                "options": options,
                "n_bytes": file_bytes(checkpoint),
            },
            progress=progress,
            say=say,
            memory_limit=available_bytes(),
            variables={"HF_HOME": str(Path(scratch) / "hub")},
            cage=Cage((tree, Path(scratch), *shown), made),
        )
        (made / "tools.json").write_text(json.dumps(result["tools"]), encoding="utf-8")
        work.root.sync("made/model.gguf")
        work.publish("made")


def _check_architecture(refusal: NoFamilyError) -> None:
    named = list(_architectures(refusal.origin.config))
    if not any(name in known_architectures() for name in named):
        why = NOT_YET.get(str(refusal.origin.config.get("model_type")))
        shown = ", ".join(printable(name, 60) for name in named) or "none"
        raise UnsupportedModelError(
            f"{refusal}. Upstream's converter of llama.cpp ({PACKAGE} {VERSION}) does not know it "
            f"either (architectures in config.json: {shown})",
            next_step=f"it {why}"
            if why
            else "if a newer llama.cpp knows it, wait for a boardfit "
            "with that engine; a GGUF of another tool is run if the engine knows its architecture",
        )


def _architectures(config: Mapping[str, Any]) -> Iterator[str]:
    """What config.json names as the model's class, for the whole and for its text part."""
    for part in (config, config.get("text_config")):
        named = part.get("architectures") if isinstance(part, Mapping) else None
        yield from (n for n in named if isinstance(n, str)) if isinstance(named, list) else ()


# ---- before -------------------------------------------------------------------------------------


def list_options(origin: Origin) -> list[str]:
    """Options of upstream's converter for what a checkpoint is for.

    Raises UnsupportedModelError for one that classifies, and for modules of an embedding model that
    the converter would leave out.
    """
    if not is_embedder(origin.directory, origin.config):
        refuse_other_heads(origin.config)
        return []
    modules = read_modules(origin.directory)
    kinds = [str(module.get("type")).rpartition(".")[2] for module in modules]
    known = {"Transformer", "Pooling", "Normalize"}
    if "Gemma3TextModel" in _architectures(origin.config):
        known |= {"Dense"}
    if other := next((kind for kind in kinds if kind not in known), None):
        raise UnsupportedModelError(
            f"{MODULES}: the module {printable(other, 40)} would be left out, and the vectors "
            "would be other ones",
            next_step="give an embedding model of transformer, pooling and normalization alone",
        )
    for name in module_files(origin.directory):
        if name.endswith("Pooling/config.json"):
            pooling = read_json_object(origin.directory / name)
            modes = [key for key, on in pooling.items() if key.startswith("pooling_mode_") and on]
            if len(modes) > 1:
                raise UnsupportedModelError(f"{name}: {' and '.join(modes)}; one is expected")
    return ["--sentence-transformers-dense-modules"] if "Dense" in kinds else []


def choose_type(checkpoint: SafetensorsCheckpoint) -> str:
    """The type that holds every matrix without loss: a 16-bit one where all have it, else f32."""
    found = {dtype for _, dtype, shape in _tensors(checkpoint) if len(shape) > 1}
    return {"BF16": "bf16", "F16": "f16"}.get(found.pop(), "f32") if len(found) == 1 else "f32"


def file_bytes(checkpoint: SafetensorsCheckpoint) -> int:
    """About what the converted file will have: vectors are stored as floats."""
    width = 4 if choose_type(checkpoint) == "f32" else 2
    sizes = (math.prod(s) * (width if len(s) > 1 else 4) for _, _, s in _tensors(checkpoint))
    return sum(sizes) + _VOCABULARY_BYTES


def conversion_bytes(checkpoint: SafetensorsCheckpoint) -> int:
    """Peak private memory: the libraries, and the largest tensor while it is converted. The experts
    of a layer become one tensor.
    """
    stacks = Counter[str]()
    for name, _, shape in _tensors(checkpoint):
        stacks[_EXPERT.sub("experts", name)] += math.prod(shape)
    return _BASE_BYTES + _BYTES_PER_HELD_VALUE * max(stacks.values(), default=0)


def check_resources(checkpoint: SafetensorsCheckpoint, folder: Path) -> None:
    check_memory(
        "upstream's converter",
        conversion_bytes(checkpoint),
        available_bytes(),
        next_step="close other programs, or convert on a machine with more memory",
    )
    check_disk(
        "the converted file",
        file_bytes(checkpoint),
        folder.parent,
        next_step="make room, or set BOARDFIT_CACHE to a directory on a larger disk",
    )


def link_checkpoint(checkpoint: SafetensorsCheckpoint, target: Path) -> Path:
    """A folder of links to what the converter may read: weights and documents, never code or
    pickles. Its configuration has no reference to code either.
    """
    target.mkdir(parents=True)
    directory = checkpoint.directory
    names = [path.name for path in directory.iterdir() if path.suffix in _DOCUMENTS]
    unused = [INDEX] if any(INDEX in note for note in checkpoint.notes) else []
    for name in sorted({*names, *checkpoint.shards, "README.md"} - {*unused, *_REWRITTEN}):
        if has_file(directory / name):
            (target / name).symlink_to((directory / name).resolve())
    for name in module_files(directory):
        (target / name).parent.mkdir(exist_ok=True)
        (target / name).symlink_to((directory / name).resolve())
    for name in _REWRITTEN:
        if has_file(directory / name):
            document = read_json_object(directory / name)
            document.pop("auto_map", None)
            _write_as_before(document)
            (target / name).write_text(json.dumps(document, indent=2), encoding="utf-8")
    return target


def _model_type(origin: Origin) -> str:
    return printable(str(origin.config.get("model_type")), 60)


def _write_as_before(document: dict[str, Any]) -> None:
    """What transformers 5 writes into tokenizer_config.json, as the pinned version 4 reads it."""
    if document.get("tokenizer_class") == "TokenizersBackend":
        document["tokenizer_class"] = "PreTrainedTokenizerFast"
    if isinstance(extra := document.get("extra_special_tokens"), list):
        del document["extra_special_tokens"]
        document.setdefault("additional_special_tokens", extra)


def _tensors(checkpoint: SafetensorsCheckpoint) -> Iterator[tuple[str, str, tuple[int, ...]]]:
    for header in checkpoint.headers.values():
        for name, entry in header.tensors.items():
            yield name, entry.dtype, tuple(entry.shape)


def _folder_name(origin: Origin) -> str:
    """The name that upstream's converter reads the model's name from."""
    name = origin.repo_id.rpartition("/")[2] if origin.repo_id else origin.directory.resolve().name
    return name or "model"


# ---- the cache ----------------------------------------------------------------------------------


def _key(checkpoint: SafetensorsCheckpoint, fingerprint: str, name: str) -> str:
    """Changes with the checkpoint, its name and the converter. A fingerprint does not read all
    weights, so the times of change count too.
    """
    times = [(checkpoint.directory / shard).stat().st_mtime_ns for shard in checkpoint.shards]
    identity = [fingerprint, name, times, VERSION, load_environments()["upstream"].key]
    return hashlib.sha256(json.dumps(identity).encode()).hexdigest()[:32]


def _keep_only(folder: Path) -> None:
    """Remove earlier conversions. What is mapped of them stays until its program ends."""
    with Root(folder.parent) as root:
        for path in folder.parent.iterdir():
            if path.is_dir() and path != folder:
                with contextlib.suppress(UsageError):  # a folder that is not ours
                    root.remove(path.name)
