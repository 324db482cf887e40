"""What is around a language model: parts of tensor names that tools leave, and other modalities.

torch.compile, DDP and FSDP put their own part into every name. A trainer puts the attribute that
held the model in front. A model saved without its head lacks `model.` instead. A model that sees
or hears has towers, of which a text artifact needs nothing.
"""

import re
from collections.abc import Collection, Iterable, Mapping

from boardfit.edge.errors import UnsupportedModelError
from boardfit.edge.units import format_bytes, printable

# Parts that wrappers of torch and of its launchers put between two dots.
_WRAPPER_PARTS = frozenset(
    ("_orig_mod", "module", "_fsdp_wrapped_module", "_checkpoint_wrapped_module", "_forward_module")
)
_EMBEDDING = "embed_tokens.weight"
# Beginnings that the families know: of a language model, and of two layouts of vision models.
_KNOWN = (
    *("model.", "language_model.model.", "model.language_model.", "model.language_model.model."),
    "model.text_model.",
)
# Parts that may be left out: in checkpoints, and in GGUF files of Ollama (`v.`, `a.`, `mm.`).
_MTP_HEAD = "the MTP head"
_PARTS = (
    (re.compile(r"(^|\.)mtp\."), _MTP_HEAD),
    (re.compile(r"projector\.|connector\.|embed_(vision|audio)\.|^mm\."), "the projector"),
    (re.compile(r"(^|\.)(audio\w*|a)\."), "the audio tower"),
    (re.compile(r""), "the vision tower"),
)
_ADAPTER = re.compile(r"\.(lora_[AB]|lora_embedding_[AB]|lora_magnitude_vector|base_layer)\b")
_SHOWN = 40
#: How a note about changed names begins.
RENAMED = "the tensors' names"


def refuse_adapter_tensors(names: Collection[str]) -> None:
    """Raises UnsupportedModelError for weights with an adapter in them that was not merged."""
    found = next((name for name in names if _ADAPTER.search(name)), None)
    if found is not None:
        raise UnsupportedModelError(
            f"the weights hold an adapter (LoRA) that is not merged: tensor {printable(found)}",
            next_step="merge it first: peft's merge_and_unload(), then save_pretrained()",
        )


def plain_names(names: Collection[str]) -> tuple[Mapping[str, str], str | None]:
    """Each stored name's plain name, and a note where they differ. Names stay as they are where no
    one change explains all of them.
    """
    parts = ((name, name.split(".")) for name in names)
    bare = {name: ".".join(p for p in split if p not in _WRAPPER_PARTS) for name, split in parts}
    embedding = next((name for name in bare.values() if name.endswith(_EMBEDDING)), None)
    if embedding is None:
        return _accept(bare, names)
    before = embedding.removesuffix(_EMBEDDING)
    if before in _KNOWN:
        return _accept(bare, names)
    if not before:
        changed = {n: b if b.startswith("lm_head.") else f"model.{b}" for n, b in bare.items()}
        return _accept(changed, names, f'{RENAMED} lack "model."; it is put in front')
    known = max((k for k in _KNOWN if before.endswith(k)), key=len, default="")
    outer = before.removesuffix(known)
    if not all(name.startswith(outer) for name in bare.values()):
        return _accept(bare, names)
    added = "" if known else "model."
    return _accept({n: added + b.removeprefix(outer) for n, b in bare.items()}, names)


def _accept(
    changed: Mapping[str, str], names: Collection[str], note: str | None = None
) -> tuple[Mapping[str, str], str | None]:
    """The changed names if they are unique, with a note if they are changed at all."""
    if len(set(changed.values())) < len(changed):
        return {name: name for name in names}, None
    example = next((name for name, plain in changed.items() if name != plain), None)
    if example is None:
        return changed, None
    return changed, note or (
        f"{RENAMED} have parts of a wrapper, which are taken off: "
        f"{printable(example, _SHOWN)} is {printable(changed[example], _SHOWN)}"
    )


def describe_left_out(sizes: Iterable[tuple[str, int]], *, can_keep_mtp: bool = False) -> list[str]:
    """Notes that name the parts that a text artifact leaves out, by tensors' names and bytes."""
    parts: dict[str, list[int]] = {label: [] for _, label in reversed(_PARTS)}
    for name, n_bytes in sizes:
        part = next(label for pattern, label in _PARTS if pattern.search(name))
        parts[part].append(n_bytes)
    texts = {
        part: f"{part} ({len(found)} tensor{'s' * (len(found) > 1)}, {format_bytes(sum(found))})"
        for part, found in parts.items()
        if found
    }
    head = texts.pop(_MTP_HEAD, None)
    notes = [f"text only: left out {' and '.join(texts.values())}"] if texts else []
    if head is not None:
        advice = "; --mtp keep keeps it" if can_keep_mtp else ""
        notes.append(f"left out {head}, which guesses tokens ahead{advice}")
    return notes
