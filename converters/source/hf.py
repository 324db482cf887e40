"""A Hugging Face model directory → `ModelSpec`. Neither torch nor transformers is needed."""

from __future__ import annotations

import contextlib
import hashlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from boardfit.converters.documents import (
    MAX_CARD_BYTES,
    MODULES,
    check_folder,
    companion_notes,
    has_file,
    module_files,
    read_bytes,
    read_json_object,
    read_modules,
)
from boardfit.converters.families.registry import family_for, model_type
from boardfit.converters.source.adapter import HUB_NAME, Adapter, MergedCheckpoint
from boardfit.converters.source.checkpoint import (
    AdapterRequest,
    SafetensorsCheckpoint,
    adapter_notes,
    refuse_adapter,
)
from boardfit.converters.source.general import general_metadata, keep_name_inert, model_license
from boardfit.converters.source.wrappers import describe_left_out
from boardfit.converters.spec import KeyValue, ModelSpec, SourceIdentity, TargetTensor
from boardfit.edge.errors import EdgeError, InputError, UnsupportedModelError
from boardfit.edge.files.gguf import read_header
from boardfit.edge.files.gguf.purpose import find_purpose
from boardfit.edge.units import printable

if TYPE_CHECKING:
    from boardfit.converters.tokenizers.vocabulary import LoadedTokenizer

_GIVE_DIRECTORY = "give the directory that holds config.json and model.safetensors, or a .gguf file"
_MODEL_CONFIGS = ("config.json", "adapter_config.json")
# A folder of other things may have many; opening them all is of no use.
_MOST_FILES = 200
# Classes of transformers and of trainers whose models classify, rank or fill in.
_OTHER_HEADS = re.compile(
    r"For(Sequence|Token|Image|Audio)Classification|ForQuestionAnswering|ForMaskedLM"
    r"|ForMultipleChoice|ForReward|RewardModel|ForTextEncoding"
)
# Small files that shape the artifact, beside config.json; their content counts for the identity.
_DOCUMENTS = (
    "config.json", "generation_config.json", "README.md", "model.safetensors.index.json",
    "tokenizer.json", "tokenizer.model", "tekken.json", "tokenizer_config.json",
    "special_tokens_map.json", "added_tokens.json", "vocab.json", "merges.txt",
    "chat_template.jinja", "chat_template.json", MODULES,
)  # fmt: skip


@dataclass(frozen=True)
class Origin:
    """A checkpoint's folder, its parsed config.json, and the repository that it came from."""

    directory: Path
    config: Mapping[str, Any]
    repo_id: str | None = None
    revision: str | None = None


class NoFamilyError(UnsupportedModelError):
    """No family of ours converts the checkpoint of `origin`; upstream's converter may."""

    def __init__(self, error: UnsupportedModelError, origin: Origin) -> None:
        super().__init__(str(error), next_step=error.next_step)
        self.origin = origin


def open_directory(
    directory: Path,
    *,
    repo_id: str | None = None,
    revision: str | None = None,
    lora: AdapterRequest | None = None,
    keep_mtp: bool = False,
) -> ModelSpec:
    """Describe the model in a directory; tensors stay on disk until they are read. `lora` is merged
    into the weights as they are read. `keep_mtp` keeps the head that guesses several tokens ahead.
    Raises InputError and its kinds for what cannot be converted, NoFamilyError where upstream's
    converter may.
    """
    check_folder(directory)
    if not has_file(directory / "config.json"):
        refuse_without_config(directory)
    config = read_json_object(directory / "config.json")
    origin = Origin(directory, config, repo_id, revision)
    if is_embedder(directory, config):
        raise NoFamilyError(UnsupportedModelError("an embedding model"), origin)
    try:
        make_family = family_for(config, keep_mtp=keep_mtp)
    except UnsupportedModelError as error:
        raise NoFamilyError(error, origin) from None
    refuse_other_heads(config)
    checkpoint = _open_checkpoint(origin, lora)
    family = make_family(checkpoint)
    tensors = family.tensors()
    if isinstance(checkpoint, MergedCheckpoint):
        checkpoint.check_head(any(tensor.name == "output.weight" for tensor in tensors))
    shape = family.shape()
    general, notes = general_metadata(directory, family.arch, tensors, model_id=repo_id)
    tokenizer = _load_tokenizer(directory, config, family.arch, tensors)
    entries = tokenizer.metadata()
    metadata, renamed = keep_name_inert((*general, *family.metadata(), *entries), family.arch)
    return ModelSpec(
        name=_value(metadata, "general.name"),
        family=model_type(config),
        shape=shape,
        metadata=metadata,
        tensors=tuple(tensors),
        source=identify(checkpoint, origin, model_license(general), keep_mtp=keep_mtp),
        chat_template=_value(entries, "tokenizer.chat_template"),
        tokenizer_dir=directory,
        notes=(
            *notes,
            *checkpoint.notes,
            *([] if lora else adapter_notes(directory)),
            *companion_notes(directory),
            *describe_left_out(
                (
                    (name, checkpoint.n_bytes(name))
                    for name in checkpoint.names()
                    if family.rename(name) is None
                ),
                can_keep_mtp=family.can_keep_mtp,
            ),
            *family.notes(),
            *tokenizer.notes,
            *renamed,
        ),
    )


def _open_checkpoint(origin: Origin, lora: AdapterRequest | None) -> SafetensorsCheckpoint:
    """The weights, with the adapter in them where there is one."""
    directory, config = origin.directory, origin.config
    if lora is None:
        return SafetensorsCheckpoint(directory, config)
    own = config.get("_name_or_path")
    cached = [p for p in directory.absolute().parts if p.startswith("models--")]
    names = [origin.repo_id, *(p.removeprefix("models--").replace("--", "/") for p in cached), own]
    known_as = [n for n in names if isinstance(n, str) and HUB_NAME.fullmatch(n)]
    return MergedCheckpoint(directory, config, Adapter(lora), known_as)


def refuse_other_heads(config: Mapping[str, Any]) -> None:
    """Raises UnsupportedModelError for a model whose head does something else than next tokens."""
    names = config.get("architectures")
    for name in names if isinstance(names, list) else []:
        if isinstance(name, str) and _OTHER_HEADS.search(name):
            raise UnsupportedModelError(
                f"config.json: the architecture {printable(name, 60)} generates no text",
                next_step="give a model that generates (…ForCausalLM)",
            )


def is_embedder(directory: Path, config: Mapping[str, Any]) -> bool:
    """Whether a checkpoint makes vectors: its modules pool, or its attention looks ahead."""
    pools = any(str(module.get("type")).endswith("Pooling") for module in read_modules(directory))
    return pools or config.get("use_bidirectional_attention") is True


def _load_tokenizer(
    directory: Path, config: Mapping[str, Any], arch: str, tensors: list[TargetTensor]
) -> LoadedTokenizer:
    """The tokenizer, chat template included, checked against the embedding's rows."""
    from boardfit.converters.tokenizers.loading import load_tokenizer

    tokenizer = load_tokenizer(directory, config, arch)
    embedding = next(tensor for tensor in tensors if tensor.name == "token_embd.weight")
    if tokenizer.n_tokens != embedding.n_rows:
        raise InputError(
            f"the tokenizer has {tokenizer.n_tokens} tokens, but {embedding.origin} has "
            f"{embedding.n_rows} rows",
            next_step="use the tokenizer files that belong to this checkpoint",
        )
    return tokenizer


def _value(entries: Sequence[KeyValue], key: str) -> Any:
    return next((entry.value for entry in entries if entry.key == key), None)


def identify(
    checkpoint: SafetensorsCheckpoint,
    origin: Origin,
    license_name: str | None,
    *,
    keep_mtp: bool = False,
) -> SourceIdentity:
    """Where a model came from: its files, and a fingerprint of their content."""
    files = checkpoint.files()
    digest = hashlib.sha256(b"with MTP head" if keep_mtp else b"")
    checkpoint.update_fingerprint(digest)
    for name in (*_DOCUMENTS, *module_files(checkpoint.directory)):
        path = checkpoint.directory / name
        if has_file(path):
            files[name] = path.stat().st_size
            digest.update(f"{name}\0{files[name]}\0".encode())
            # An empty document has no content, and a card that is too large is not used.
            if files[name] and (name != "README.md" or files[name] <= MAX_CARD_BYTES):
                digest.update(read_bytes(path))
    adapter = checkpoint.adapter.describe() if isinstance(checkpoint, MergedCheckpoint) else None
    kind, location = "hf-directory", str(origin.directory)
    if origin.repo_id is not None:
        kind, location = "hub", origin.repo_id
    return SourceIdentity(
        kind, location, files, digest.hexdigest(), license_name, origin.revision,
        checkpoint.quantized, adapter,
    )  # fmt: skip


def refuse_without_config(directory: Path) -> NoReturn:
    """Raises InputError that names what the folder is, and the path to give instead."""
    refuse_adapter(directory)
    # A file that cannot be read names its own fault when it is given.
    models = language_models(directory) or sorted(directory.glob("*.gguf"))[:1]
    if models:
        more = f" (also here: {', '.join(p.name for p in models[1:4])})" if models[1:] else ""
        raise _without_config(directory, f"give edge the GGUF file itself: {models[0]}{more}")
    original = next((n for n in ("params.json", "tekken.json") if has_file(directory / n)), None)
    if original or any(directory.glob("consolidated*")):
        raise UnsupportedModelError(
            f"{directory}: a checkpoint in its author's original layout "
            f"({original or 'consolidated weights'}), without config.json",
            next_step="use the checkpoint in Hugging Face's layout, with config.json and "
            "model.safetensors",
        )
    if has_file(directory / "model_index.json"):
        raise UnsupportedModelError(
            f"{directory}: a diffusers pipeline (model_index.json), not a language model"
        )
    inner = inner_models(directory)
    if inner:
        more = f" (also: {', '.join(p.name for p in inner[1:4])})" if inner[1:] else ""
        raise _without_config(directory, f"give the folder inside it: {inner[0]}{more}")
    raise _without_config(directory, _GIVE_DIRECTORY)


def language_models(directory: Path) -> list[Path]:
    """The GGUF files of a folder that hold a language model, the first part of a split one."""
    found = []
    for path in sorted(directory.glob("*.gguf"))[:_MOST_FILES]:
        part = re.search(r"-(\d{5})-of-\d{5}\.gguf$", path.name)
        with contextlib.suppress(EdgeError, OSError):
            if (part is None or part[1] == "00001") and find_purpose(read_header(path)) is None:
                found.append(path)
    return found


def inner_models(directory: Path) -> list[Path]:
    """Folders inside that hold a model or an adapter, the latest of a training run first."""
    # Of the hub's cache: a model's folder, all of them, and the folder around.
    patterns = ("*", "snapshots/*", "models--*/snapshots/*", "hub/models--*/snapshots/*")
    inside = (path for pattern in patterns for path in directory.glob(pattern) if path.is_dir())
    models = (p for p in inside if any(has_file(p / name) for name in _MODEL_CONFIGS))

    def latest(path: Path) -> tuple[int, str]:
        digits = re.findall(r"\d{1,9}", path.name)
        return -int(digits[-1]) if digits else 0, path.name

    return sorted(islice(models, _MOST_FILES), key=latest)


def _without_config(directory: Path, next_step: str) -> InputError:
    return InputError(
        f"{printable(str(directory))}: no config.json, so this is not a Hugging Face model "
        "directory",
        next_step=next_step,
    )
