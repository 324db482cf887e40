"""The `.litertlm` container, read with every offset checked: where the model lies in the file, its
tokenizer, and its settings for LiteRT-LM.

    "LITERTLM" | version 3 x u32 | 0 u32 | end of header u64 | header (FlatBuffer) | sections

The header lists sections by kind and by offset (upstream: `litertlm_header_schema.fbs`); the model
is one of them, a plain TFLite file. LlmMetadata is a protobuf message (`llm_metadata.proto`), of
which four fields are read.
"""

import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from boardfit.edge.disk.opened_file import Source
from boardfit.edge.errors import InputError, UnsafeInputError, UnsupportedModelError
from boardfit.edge.files.flatbuffer import FlatBufferError, Table
from boardfit.edge.files.kind import HEAD_BYTES, foreign, open_regular
from boardfit.edge.files.protobuf import ProtoMessage

MAGIC = b"LITERTLM"
_PREFIX = struct.Struct("<8sIIIIQ")
_MAX_HEADER_BYTES = 1 << 20
_MAX_SECTIONS = 64
_MAX_METADATA_BYTES = 4 << 20
_MAX_TOKENIZER_BYTES = 64 << 20

# AnySectionDataType.
MODEL, SP_TOKENIZER, METADATA, HF_TOKENIZER, OUTSIDE_WEIGHTS = 3, 4, 5, 6, 7
_STRING_VALUE = 9  # VData.StringValue


@dataclass(frozen=True)
class ContainerSection:
    """One part of the file: its kind, its place in bytes, and its labels (`model_type` …)."""

    kind: int
    offset: int
    n_bytes: int
    labels: dict[str, str]


@dataclass(frozen=True)
class Container:
    """What a `.litertlm` file says about itself. `start` is an id, or how the token is written."""

    path: Source
    sections: tuple[ContainerSection, ...]
    header_bytes: int
    start: int | str | None = None
    stop_ids: tuple[int, ...] = ()
    stop_texts: tuple[str, ...] = ()
    template: str | None = None
    max_tokens: int | None = None

    @property
    def model(self) -> ContainerSection:
        """The section with the decoder."""
        return next(s for s in self.sections if _is_decoder(s))

    def tokenizer_json(self) -> bytes | None:
        """The Hugging Face tokenizer inside; None if there is another kind."""
        section = next((s for s in self.sections if s.kind == HF_TOKENIZER), None)
        if section is None:
            return None
        data = _read(self.path, section.offset, section.n_bytes)
        if len(data) < 8:
            raise InputError(f"{self.path}: its tokenizer has {len(data)} bytes")
        (size,) = struct.unpack_from("<Q", data)
        if size > _MAX_TOKENIZER_BYTES:
            raise UnsafeInputError(f"{self.path}: its tokenizer claims {size} bytes")
        unpacker = zlib.decompressobj()
        try:
            text = unpacker.decompress(data[8:], size + 1)
        except zlib.error as error:
            raise InputError(f"{self.path}: its tokenizer is damaged: {error}") from None
        if len(text) != size:
            raise InputError(f"{self.path}: its tokenizer has {len(text)} bytes, not {size}")
        return text


def read_container(path: Source) -> Container:
    """Read and check the header and the metadata. Raises InputError for what is no `.litertlm` or
    is cut short, UnsafeInputError for one that points outside itself, UnsupportedModelError for one
    without a decoder.
    """
    file, size = open_regular(path)
    with file:
        head = file.read(HEAD_BYTES)
        if not head.startswith(MAGIC):
            kind = foreign(head)
            raise InputError(
                f"{path}: expected a LiteRT-LM file, got {kind.name if kind else 'something else'}",
                next_step=kind.next_step if kind else None,
            )
        if len(head) < _PREFIX.size:
            raise InputError(f"{path}: cut short: it has {size} bytes")
        _, major, _, _, _, end = _PREFIX.unpack_from(head)
        if major != 1:
            raise UnsupportedModelError(f"{path}: container version {major}; known is 1")
        if not _PREFIX.size < end <= min(size, _MAX_HEADER_BYTES):
            raise UnsafeInputError(f"{path}: its header claims to end at {end}, the file at {size}")
        file.seek(_PREFIX.size)
        header = file.read(end - _PREFIX.size)
    try:
        sections = tuple(_sections(header))
    except FlatBufferError as error:
        raise UnsafeInputError(f"{path}: its header is damaged: {error}") from None
    for section in sections:
        if not end <= section.offset <= section.offset + section.n_bytes <= size:
            raise InputError(
                f"{path}: a section lies at {section.offset} with {section.n_bytes} bytes, "
                f"the file has {size}: cut short, or edited",
                next_step="copy or build it again",
            )
    if not any(map(_is_decoder, sections)):
        raise UnsupportedModelError(f"{path}: holds no decoder (tf_lite_prefill_decode)")
    if any(section.kind == OUTSIDE_WEIGHTS for section in sections):
        raise UnsupportedModelError(f"{path}: keeps weights outside its model section")
    metadata = next((s for s in sections if s.kind == METADATA), None)
    found = _read_metadata(path, metadata) if metadata is not None else {}
    return Container(path, sections, end, **found)


def _is_decoder(section: ContainerSection) -> bool:
    name = section.labels.get("model_type", "")
    return section.kind == MODEL and name in ("", "tf_lite_prefill_decode")


def _read(path: Source, offset: int, n_bytes: int) -> bytes:
    file, _ = open_regular(path)
    with file:
        file.seek(offset)
        data = file.read(n_bytes)
    if len(data) != n_bytes:
        raise InputError(f"{path}: cut short at {offset + len(data)}")
    return data


# ---- FlatBuffer header --------------------------------------------------------------------------


def _sections(header: bytes) -> Iterator[ContainerSection]:
    listed = Table.root(header).table(1)
    if listed is None:
        return
    for entry in listed.tables(0, _MAX_SECTIONS):
        first, last = entry.number(1, "Q"), entry.number(2, "Q")
        if last < first:
            raise FlatBufferError(f"a section from {first} to {last}")
        labels = {}
        for item in entry.tables(0, _MAX_SECTIONS):
            value = item.table(2)
            if value is not None and item.number(1, "B") == _STRING_VALUE:
                labels[item.text(0)] = value.text(0)
        yield ContainerSection(entry.number(3, "B"), first, last - first, labels)


# ---- protobuf metadata --------------------------------------------------------------------------


def _read_metadata(path: Source, section: ContainerSection) -> dict[str, Any]:
    """The fields of LlmMetadata that `Container` has."""
    if section.n_bytes > _MAX_METADATA_BYTES:
        raise UnsafeInputError(f"{path}: {section.n_bytes} bytes of metadata")
    found: dict[str, Any] = {"stop_ids": (), "stop_texts": ()}
    fault = "its metadata is damaged"
    data = _read(path, section.offset, section.n_bytes)
    message = ProtoMessage(data, 0, len(data), str(path), fault)
    try:
        for part in message.parts(1):
            ids, text = _read_token(part)
            found["start"] = ids[0] if len(ids) == 1 else text
        for part in message.parts(2):
            ids, text = _read_token(part)
            found["stop_ids"] += ids if len(ids) == 1 else ()
            found["stop_texts"] += (text,) if text else ()
        for part in message.parts(7):
            found["template"] = part.read().decode("utf-8")
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: {fault}: {error}") from None
    return {**found, "max_tokens": message.number(5)}


def _read_token(union: ProtoMessage) -> tuple[tuple[int, ...], str | None]:
    """A TokenUnion: ids, or a text."""
    for number, value in union.fields():
        if number == 1 and isinstance(value, ProtoMessage):
            return tuple(value.numbers(1)), None
        if number == 2 and isinstance(value, ProtoMessage):
            return (), value.read().decode("utf-8")
    return (), None
