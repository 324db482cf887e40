"""Compare our `ModelSpec` of a checkpoint with the GGUF that upstream's converter makes of it."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from gguf import GGUFValueType

from boardfit.converters.families.layout import to_f32
from boardfit.converters.families.registry import family_for
from boardfit.converters.source.checkpoint import SafetensorsCheckpoint
from boardfit.converters.source.general import general_metadata
from boardfit.converters.source.hf import open_directory
from boardfit.converters.spec import KeyValue, ModelSpec, TargetTensor
from boardfit.edge.files.gguf import read_header
from tests.converters.families.checkpoints import Case, write_case
from tests.converters.tokenizers.flavours import FLAVOURS
from tests.converters.tokenizers.rebuild import rebuild, vocab_path

DRIVER = Path(__file__).parent / "oracle_driver.py"

# What the writer adds, so that it is not in a spec.
WRITERS_OWN = ("general.file_type", "general.quantization_version")

# Where we differ from upstream on purpose, for every family: key → why. Keep it short.
KNOWN_DIFFERENCES: dict[str, str] = {}

# Entries with upstream's value in another place: key → why.
ELSEWHERE: dict[str, str] = {
    "phi3.rope.scaling.attn_factor": "upstream adds it while it makes the tensors, which is "
    "before general.*; ours are together with the architecture's",
    "tokenizer.ggml.eot_token_id": "upstream adds Hunyuan's after the chat template; ours are "
    "together with the other ids",
}


@dataclass(frozen=True)
class Entry:
    """A metadata entry in comparable form: numbers as stored, arrays as lists."""

    key: str
    kind: tuple[int, int | None]
    value: Any


def convert_upstream(
    cases: Sequence[Case],
    work: Path,
    python: Path,
    tree: Path,
    *,
    outtype: str = "f32",
    ready: Sequence[Case] = (),
) -> None:
    """Write every case to `work/NAME/` and convert all with upstream in one process to
    `work/NAME.gguf`; where upstream refuses one, its traceback goes to `work/NAME.refused`.
    `ready` are written already.
    """
    jobs = []
    for case in (*cases, *ready):
        directory = work / case.name
        if case not in ready:
            write_case(case, directory)
        if case.vocabulary is not None:
            write_tokenizer(case, directory, tree)
        jobs.append(
            {
                "model": str(directory),
                "outfile": str(work / f"{case.name}.gguf"),
                "outtype": outtype,
                "vocab": case.vocabulary is not None,
                "pre": pre_tokenizer_unknown_upstream(case),
                "options": ["--no-mtp"] if case.keep_mtp is False else [],
            }
        )
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    environment.pop("NO_LOCAL_GGUF", None)
    done = subprocess.run(
        [str(python), str(DRIVER), str(tree)],
        input=json.dumps(jobs),
        capture_output=True,
        text=True,
        env=environment,
        timeout=600,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    failures = json.loads(done.stdout.strip().splitlines()[-1])
    for model, reason in failures.items():
        Path(f"{model}.refused").write_text(reason)


def write_tokenizer(case: Case, directory: Path, tree: Path) -> None:
    """Tokenizer files with a real vocabulary, and its special ids in `config.json`."""
    assert case.vocabulary is not None
    rebuilt = rebuild(vocab_path(tree, case.vocabulary), directory, flavour=case.vocabulary)
    assert rebuilt.n_vocab <= case.n_vocab, f"{case.name}: too few embedding rows"
    ids = {
        "bos_token_id": rebuilt.bos_id,
        "eos_token_id": rebuilt.eos_id,
        "pad_token_id": rebuilt.pad_id,
    }
    (directory / "config.json").write_text(json.dumps({**ids, **case.config}))


def pre_tokenizer_unknown_upstream(case: Case) -> str | None:
    """The name of a pre-tokenizer that upstream's table of hashes lacks for a rebuilt vocabulary:
    the driver then answers for the table.
    """
    flavour = FLAVOURS.get(case.vocabulary or "")
    return flavour.pre if flavour and flavour.upstream_pre is None else None


def our_spec(case: Case, directory: Path) -> ModelSpec | tuple[list[KeyValue], list[TargetTensor]]:
    """What we make of a case: a whole spec, or metadata and tensors when it has no tokenizer."""
    if case.vocabulary is not None:
        return open_directory(directory, keep_mtp=case.keep_mtp or False)
    checkpoint = SafetensorsCheckpoint(directory, case.config)
    family = family_for(case.config, keep_mtp=case.keep_mtp or False)(checkpoint)
    tensors = family.tensors()
    general, _ = general_metadata(directory, family.arch, tensors)
    return general + family.metadata(), tensors


def differences(case: Case, directory: Path, upstream: Path) -> list[str]:
    """Every difference in metadata (keys, order, types, values) and tensors (names, order, shapes,
    types that are kept, bytes) between our reading of a case and upstream's float32 GGUF.
    """
    ours = our_spec(case, directory)
    if isinstance(ours, ModelSpec):
        metadata, tensors = ours.metadata, ours.tensors
    else:
        metadata, tensors = tuple(ours[0]), tuple(ours[1])
    return compare_metadata(metadata, upstream) + compare_tensors(tensors, upstream)


def compare_metadata(ours: Iterable[KeyValue], upstream: Path) -> list[str]:
    """Differences in metadata, `WRITERS_OWN` and `KNOWN_DIFFERENCES` left out."""
    left_out = {*WRITERS_OWN, *KNOWN_DIFFERENCES}
    mine = [entry for entry in map(comparable, ours) if entry.key not in left_out]
    header = read_header(upstream, arrays="full")
    theirs = [
        Entry(key, tuple(header.kv_types[key]), value)
        for key, value in header.kv.items()
        if key not in left_out
    ]
    found = []
    if _in_order(mine) != _in_order(theirs):
        found.append(f"keys: ours {[e.key for e in mine]}, upstream {[e.key for e in theirs]}")
    expected = {e.key: e for e in theirs}
    for entry in mine:
        other = expected.get(entry.key)
        if other is not None and entry != other:
            found.append(f"{entry.key}: ours {_short(entry)}, upstream {_short(other)}")
    return found


def comparable(entry: KeyValue) -> Entry:
    """An entry as it would be read back from a file."""
    item = entry.item_type
    kind = (int(entry.value_type), None if item is None else int(item))
    value = entry.value
    if entry.value_type == GGUFValueType.ARRAY:
        value = [_stored(each, item) for each in value]
    else:
        value = _stored(value, entry.value_type)
    return Entry(entry.key, kind, value)


def compare_tensors(ours: Sequence[TargetTensor], upstream: Path) -> list[str]:
    """Differences in names, order, shapes, kept types and values as float32, or bytes as kept."""
    header = read_header(upstream)
    mine, theirs = [t.name for t in ours], [t.name for t in header.tensors]
    if mine != theirs:
        return [f"tensor names or order: ours {mine}, upstream {theirs}"]
    found = []
    data = np.memmap(upstream, np.uint8, "r")
    for tensor, other in zip(ours, header.tensors, strict=True):
        if tensor.shape != tuple(reversed(other.dims)):
            found.append(f"{tensor.name}: shape {tensor.shape}, upstream {other.dims[::-1]}")
            continue
        start = header.data_offset + other.offset
        if other.type_name != "F32":
            kept = np.asarray(tensor.read(0, tensor.n_rows)).tobytes()
            types = (tensor.source_type, tensor.keep)
            if (
                types != (other.type_name,) * 2
                or kept != data[start : start + other.nbytes].tobytes()
            ):
                found.append(f"{tensor.name}: {types} differs from upstream's {other.type_name}")
            continue
        expected = data[start : start + other.nbytes].view(np.float32)
        got = to_f32(tensor.read(0, tensor.n_rows), tensor.source_type).reshape(-1)
        if not is_same(tensor.name, got.tobytes(), expected.tobytes()):
            wrong = int(np.flatnonzero(got != expected)[:1].sum())
            found.append(
                f"{tensor.name}: values differ, first at {wrong}: {got[wrong]!r} for "
                f"{expected[wrong]!r}"
            )
    return found


def is_same(name: str, ours: bytes, upstream: bytes) -> bool:
    """Whether a tensor's bytes agree. `ssm_a` is made with `exp`, which torch computes to the last
    place but one.
    """
    if ours == upstream or not name.endswith(".ssm_a") or len(ours) != len(upstream):
        return ours == upstream
    far = np.frombuffer(ours, "<i4").astype(np.int64) - np.frombuffer(upstream, "<i4")
    return bool((np.abs(far) <= 1).all())


def _stored(value: Any, kind: GGUFValueType | None) -> Any:
    if kind == GGUFValueType.FLOAT32:
        return float(np.float32(value))
    if isinstance(value, bytes):
        return value.decode("utf-8")
    return value


def _in_order(entries: Iterable[Entry]) -> list[str]:
    """Keys in order, those that may be elsewhere at the end."""
    return sorted((entry.key for entry in entries), key=lambda key: key in ELSEWHERE)


def _short(entry: Entry) -> str:
    if isinstance(entry.value, list) and len(entry.value) > 12:
        return f"{entry.kind} list of {len(entry.value)}"
    return f"{entry.kind} {entry.value!r}"
