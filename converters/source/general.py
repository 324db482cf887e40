"""`general.*` metadata: name, size, licence and the like, by upstream's heuristics.

The heuristics are those of the `gguf` package (`gguf.metadata.Metadata`), so that a file is called
and labelled as everybody else's; the documents they feed on are read by us.
"""

import logging
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from gguf import GGUFType, GGUFValueType, GGUFWriter, Metadata, size_label

from boardfit.converters.documents import has_file, read_front_matter, read_json_object
from boardfit.converters.spec import KeyValue, TargetTensor
from boardfit.edge.errors import InputError
from boardfit.edge.units import printable

# generation_config.json → Metadata field; where a key of upstream's own exists too, it wins.
_SAMPLING = {
    "sequence": "sampling_sequence",
    "top_k": "sampling_top_k",
    "top_p": "sampling_top_p",
    "min_p": "sampling_min_p",
    "xtc_probability": "sampling_xtc_probability",
    "xtc_threshold": "sampling_xtc_threshold",
    "temperature": "sampling_temp",
    "penalty_last_n": "sampling_penalty_last_n",
    "repetition_penalty": "sampling_penalty_repeat",
    "penalty_repeat": "sampling_penalty_repeat",
    "mirostat": "sampling_mirostat",
    "mirostat_tau": "sampling_mirostat_tau",
    "mirostat_eta": "sampling_mirostat_eta",
}


# Parts of names, what to write instead, and the architecture and tokens that the engine means.
_READ_INTO_NAMES = (
    (r"(?i)(phi)-?3", r"\1 3", "phi3", {"<unk>", "<s>", "</s>", "<|endoftext|>"}),
    (r"(?i)(modern)-(bert)", r"\1 \2", "modern-bert", {"[MASK]"}),
)


def general_metadata(
    directory: Path, arch: str, tensors: Sequence[TargetTensor], *, model_id: str | None = None
) -> tuple[list[KeyValue], list[str]]:
    """`general.*` entries in upstream's order, and notes about documents that could not be read.
    `model_id` (`owner/name`) takes the place of the directory's name, which for a hub snapshot is a
    hash.
    """
    card, notes = _read_if_there(directory / "README.md", read_front_matter, "model card")
    total, shared, expert, n_expert = parameter_counts(tensors)
    config = read_json_object(directory / "config.json")
    name_or_path = config.get("_name_or_path")
    metadata = Metadata.apply_metadata_heuristic(
        Metadata(),
        card,
        {"_name_or_path": name_or_path} if isinstance(name_or_path, str) else {},
        Path(model_id) if model_id else directory.resolve(),
        total,
    )
    generation, more_notes = _read_if_there(
        directory / "generation_config.json", read_json_object, "sampling defaults"
    )
    for key, field in _SAMPLING.items():
        value = generation.get(key)
        if value is not None:
            setattr(metadata, field, value)
    if metadata.name is None:
        metadata.name = model_id or directory.resolve().name or "model"
    if metadata.size_label is None and total > 0:
        metadata.size_label = size_label(total, shared, expert, n_expert)
    return _entries(metadata, arch), notes + more_notes


def parameter_counts(tensors: Sequence[TargetTensor]) -> tuple[int, int, int, int]:
    """Total, shared, per-expert parameters, experts per layer: what `size_label` takes."""
    total = shared = per_expert = experts = stacks = 0
    for tensor in tensors:
        total += tensor.n_elements
        if "_exps." in tensor.name and len(tensor.shape) >= 3:
            per_expert += tensor.n_elements // tensor.shape[-3]
            experts += tensor.shape[-3]
            stacks += 1
        else:
            shared += tensor.n_elements
    return total, shared, per_expert, experts // stacks if stacks else 0


def keep_name_inert(
    entries: Sequence[KeyValue], arch: str
) -> tuple[tuple[KeyValue, ...], list[str]]:
    """The entries with a `general.name` that the engine reads nothing into, and a note about it.
    llama.cpp changes tokens by the name (src/llama-vocab.cpp). If the name contains "phi-3" or
    "phi3", it looks up tokens of Phi-3's own vocabulary, and fails where they are absent.
    """
    values = {entry.key: entry.value for entry in entries}
    name, tokens = values.get("general.name"), values.get("tokenizer.ggml.tokens")
    if not isinstance(name, str) or not isinstance(tokens, list):
        return tuple(entries), []
    changed = name
    for pattern, spoken, meant_arch, meant_tokens in _READ_INTO_NAMES:
        if arch != meant_arch or not meant_tokens.issubset(tokens):
            changed = re.sub(pattern, spoken, changed)
    if changed == name:
        return tuple(entries), []
    renamed = (
        replace(entry, value=changed) if entry.key == "general.name" else entry for entry in entries
    )
    return tuple(renamed), [
        f"the model is called {printable(changed, 80)!r} in the file: the engine changes the "
        f"tokens of models called {printable(name, 80)!r}"
    ]


def model_license(entries: Sequence[KeyValue]) -> str | None:
    """The licence that the entries state, the given name of an `other` one first."""
    values = {entry.key: entry.value for entry in entries}
    return values.get("general.license.name") or values.get("general.license")


def _read_if_there(
    path: Path, read: Callable[[Path], dict[str, Any]], what: str
) -> tuple[dict[str, Any], list[str]]:
    """A document that may lack; a note about one that cannot be read."""
    if not has_file(path):
        return {}, []
    try:
        return read(path), []
    except InputError as error:
        return {}, [f"{what} not used: {error}"]


def _entries(metadata: Metadata, arch: str) -> list[KeyValue]:
    """What upstream's writer would store, recorded through its own `add_` methods."""
    recorder = GGUFWriter(path=None, arch=arch)
    recorder.add_type(GGUFType.MODEL)
    writer_log = logging.getLogger("gguf.gguf_writer")
    level = writer_log.level
    writer_log.setLevel(logging.ERROR)
    try:
        metadata.set_gguf_meta_model(recorder)
    except (TypeError, AttributeError, ValueError) as error:
        raise InputError(
            f"the model card's header has a value of an unexpected kind: {error}",
            next_step="correct README.md's YAML header, or remove README.md",
        ) from None
    finally:
        writer_log.setLevel(level)
    recorded: Mapping[str, Any] = recorder.kv_data[0]
    return [_entry(key, value.value, value.type) for key, value in recorded.items()]


def _entry(key: str, value: Any, kind: GGUFValueType) -> KeyValue:
    """One entry with its value made sure to be of its type: cards contain `version: 1.5`."""
    if kind == GGUFValueType.ARRAY:
        # YAML reads the language "no" as false.
        items = ["no" if item is False else str(item) for item in value]
        return KeyValue(key, items, kind, GGUFValueType.STRING)
    if kind == GGUFValueType.STRING:
        return KeyValue(key, str(value), kind)
    number = float if kind == GGUFValueType.FLOAT32 else int
    try:
        return KeyValue(key, number(value), kind)
    except (TypeError, ValueError):
        raise InputError(
            f"{key}: expected a number, got {value!r} in generation_config.json"
        ) from None
