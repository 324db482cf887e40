"""A GGUF file of any architecture → `ModelSpec`: checked by our own linter, then mapped.

Metadata is copied, less what only holds for the old file; tensors are offered in the type that
they are stored in, rows of quantized types as raw blocks.
"""

import hashlib
import mmap
import re
from pathlib import Path
from typing import Any

import numpy as np
from gguf import GGUFValueType

from boardfit.converters.families.layout import keep_type
from boardfit.converters.families.registry import needed_engine
from boardfit.converters.families.shape import ENGINE_ARCHITECTURES, find_shape
from boardfit.converters.source.checkpoint import map_file, update_with_file
from boardfit.converters.source.general import keep_name_inert, model_license
from boardfit.converters.source.wrappers import describe_left_out
from boardfit.converters.spec import KeyValue, ModelSpec, SourceIdentity, TargetTensor
from boardfit.edge.disk.input_folder import is_file_below
from boardfit.edge.errors import InputError, UnsupportedModelError
from boardfit.edge.files.ggml_types import row_bytes
from boardfit.edge.files.gguf import GgufHeader, GgufTensor, read_header
from boardfit.edge.files.gguf.purpose import OTHER_MODALITIES, require_model
from boardfit.edge.units import printable

# True of the old file only: the writer writes them anew, and an imatrix that shaped other bits is
# not the one that shapes ours.
_NOT_COPIED = ("general.file_type", "general.quantization_version", "split.", "quantize.imatrix.")
# Keys of a vision or audio part inside the file of a language model, as Ollama writes them.
_OF_OTHER_MODALITY = re.compile(r"[\w-]+\.(vision|audio|mm|projector)\.")
_SPLIT = re.compile(r"(.+)-(\d{5})-of-(\d{5})\.gguf")
# File names that programs give to any model.
_NAMELESS = re.compile(
    r"(?i).{1,2}|(ggml-)?model([-_.][a-z0-9_]+)?|out|output|sha256-[0-9a-f]+|[0-9a-f]+"
)
_PLAIN: dict[str, np.dtype[Any]] = {
    "F32": np.dtype("<f4"), "F16": np.dtype("<f2"), "BF16": np.dtype("<u2")
}  # fmt: skip


def open_gguf(path: Path) -> ModelSpec:
    """Describe the model in a GGUF file; for a split model any part's path will do. Raises
    InputError and its kinds as `read_header` does, and for parts that are absent or do not belong
    together, UnsupportedModelError for a GGUF that is not a language model.
    """
    paths = _parts(path)
    headers = [read_header(p, arrays="full", below=_folder(p, path)) for p in paths]
    first = headers[0]
    require_model(first, path)
    require_known_architecture(first.arch, path)
    _check_parts(paths, headers)
    maps = [
        map_file(p, h.file_size, below=_folder(p, path))
        for p, h in zip(paths, headers, strict=True)
    ]
    tensors: dict[str, TargetTensor] = {}
    left_out: list[tuple[str, int]] = []
    digest = hashlib.sha256()
    for part, header, mapped in zip(paths, headers, maps, strict=True):
        update_with_file(digest, part.name, mapped, header.data_offset)
        for entry in header.tensors:
            if entry.name.startswith(OTHER_MODALITIES):
                left_out.append((entry.name, entry.nbytes))
                continue
            if entry.name in tensors:
                raise InputError(f"{part}: tensor {printable(entry.name)} is in two parts")
            tensors[entry.name] = _tensor(entry, header, mapped, part.name)
    if not tensors:
        raise InputError(
            f"{path}: no tensors; it holds a vocabulary only",
            next_step="give the model's own GGUF file",
        )
    metadata, renamed = keep_name_inert(_metadata(first), first.arch)
    return ModelSpec(
        name=_name(first, path),
        family=first.arch,
        shape=find_shape(first.arch, first.kv, tuple(tensors.values())),
        metadata=metadata,
        tensors=tuple(tensors.values()),
        source=SourceIdentity(
            kind="gguf",
            location=str(path),
            files={p.name: h.file_size for p, h in zip(paths, headers, strict=True)},
            fingerprint=digest.hexdigest(),
            license=model_license(metadata),
        ),
        chat_template=first.text("tokenizer.chat_template"),
        notes=(
            *(note for header in headers for note in header.notes),
            *describe_left_out(left_out),
            *renamed,
        ),
    )


def require_known_architecture(arch: str, path: Path) -> None:
    """Raises UnsupportedModelError for an architecture that the engine does not know."""
    if arch in ENGINE_ARCHITECTURES:
        return
    raise UnsupportedModelError(
        f"{path}: its architecture is {printable(arch, 60)!r}, which this llama.cpp does not know"
        f"{needed_engine(arch)}",
        next_step="a newer boardfit may bring an engine that knows it. "
        "Ollama has names of its own for some models: use a GGUF that was made for llama.cpp",
    )


def _folder(part: Path, named: Path) -> Path | None:
    """The folder that a part may not lead out of; the user's own file may be a link."""
    return None if part == named else part.parent


def _parts(path: Path) -> list[Path]:
    """All files of the model that `path` belongs to. Raises InputError when one is absent."""
    match = _SPLIT.fullmatch(path.name)
    if match is None:
        return [path]
    stem, total = match[1], int(match[3])
    parts = [path.with_name(f"{stem}-{i:05d}-of-{total:05d}.gguf") for i in range(1, total + 1)]
    others = [part for part in parts if part != path]
    missing = [part.name for part in others if not is_file_below(part.parent, part.name)]
    if missing or not parts:
        raise InputError(
            f"{path}: part {missing[0] if missing else path.name} of the split model is missing "
            f"({total} are needed)",
            next_step="download all parts into one directory",
        )
    return parts


def _check_parts(paths: list[Path], headers: list[GgufHeader]) -> None:
    count = headers[0].split_count
    if count > len(paths) and headers[0].trailing_bytes:
        raise InputError(
            f"{paths[0]}: the parts of a split model in one file; each part is a GGUF of its own",
            next_step="keep them apart under the names that they were published under, or join "
            "them with llama-gguf-split --merge",
        )
    if count != len(paths):
        raise InputError(
            f"{paths[0]}: the file is one of {count} parts, its name is one of {len(paths)}",
            next_step="give the parts the names that they were published under",
        )
    for index, (path, header) in enumerate(zip(paths, headers, strict=True)):
        number = header.integer("split.no") or 0
        if count > 1 and (number != index or header.split_count != count):
            raise InputError(
                f"{path}: states that it is part {number + 1} of {header.split_count}, expected "
                f"part {index + 1} of {count}"
            )
    expected = headers[0].integer("split.tensors.count")
    found = sum(len(header.tensors) for header in headers)
    if count > 1 and expected is not None and expected != found:
        raise InputError(f"{paths[0]}: {found} tensors in all parts, {expected} announced")


def _tensor(entry: GgufTensor, header: GgufHeader, mapped: mmap.mmap, file: str) -> TargetTensor:
    shape = tuple(reversed(entry.dims))
    start = header.data_offset + entry.offset
    plain = _PLAIN.get(entry.type_name)
    if plain is not None:
        count, width = entry.nbytes // plain.itemsize, shape[-1]
    else:
        count, width = entry.nbytes, row_bytes(entry.type_name, shape[-1])
    rows = np.frombuffer(mapped, plain or np.dtype("u1"), count, start).reshape(-1, width)
    # llama-quantize leaves these as they are (src/llama-quant.cpp, `tensor_allows_quantization`).
    n_dims = len(shape) - next((i for i, extent in enumerate(shape) if extent > 1), len(shape) - 1)
    # Experts that gpt-oss was trained in: from a checkpoint they stay in that type too.
    is_trained_so = entry.type_name == "MXFP4" and "_exps." in entry.name
    keep = entry.type_name if keep_type(entry.name, n_dims) or is_trained_so else None
    return TargetTensor(
        name=entry.name,
        shape=shape,
        source_type=entry.type_name,
        read=lambda first, stop: rows[first:stop],
        keep=keep,
        origin=f"{entry.name} in {file}",
    )


def _metadata(header: GgufHeader) -> tuple[KeyValue, ...]:
    entries = []
    for key, value in header.kv.items():
        if key.startswith(_NOT_COPIED) or _OF_OTHER_MODALITY.match(key):
            continue
        kind = header.kv_types[key]
        item = None if kind.item_type is None else GGUFValueType(kind.item_type)
        entries.append(KeyValue(key, value, GGUFValueType(kind.value_type), item))
    return tuple(entries)


def _name(header: GgufHeader, path: Path) -> str:
    """The file's name, which is what people know; where that names no model, the header's."""
    match = _SPLIT.fullmatch(path.name)
    stem = match[1] if match else path.stem
    if path.suffix.lower() == ".gguf" and not _NAMELESS.fullmatch(stem):
        return stem
    return header.text("general.name") or stem
