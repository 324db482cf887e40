"""A GGUF taken as it stands: one file byte for byte, a split model in one file."""

from __future__ import annotations

from pathlib import Path

import gguf
import numpy as np
import pytest

from boardfit.converters.formats.gguf.recipe import load_recipe, make_as_is
from boardfit.converters.formats.gguf.write import write_as_is, write_gguf
from boardfit.converters.source.gguf import open_gguf
from boardfit.converters.source.resolve import open_model
from boardfit.edge.bundle.bundle import sha256_file
from boardfit.edge.errors import InputError
from boardfit.edge.files.gguf import read_header

pytestmark = pytest.mark.engine
RECIPE = make_as_is("Q4_0")


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("as-is") / "model.gguf"
    write_gguf(open_model("sample"), load_recipe("q4_0"), path)
    return path


def split(source: Path, folder: Path) -> Path:
    """The same model in two parts, with all of its metadata in the first."""
    reader = gguf.GGUFReader(source)
    half = len(reader.tensors) // 2
    for number, tensors in enumerate((reader.tensors[:half], reader.tensors[half:])):
        path = folder / f"m-{number + 1:05d}-of-00002.gguf"
        writer = gguf.GGUFWriter(path, "llama")
        for key, field in reader.fields.items() if number == 0 else ():
            if key.startswith("GGUF.") or key == "general.architecture":
                continue
            kind = field.types[0]
            item = field.types[-1] if kind == gguf.GGUFValueType.ARRAY else None
            writer.add_key_value(key, field.contents(), kind, item)
        writer.add_uint16("split.no", number)
        writer.add_uint16("split.count", 2)
        writer.add_int32("split.tensors.count", len(reader.tensors))
        for tensor in tensors:
            writer.add_tensor(tensor.name, np.array(tensor.data), raw_dtype=tensor.tensor_type)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
    return path


def tensor_bytes(path: Path) -> dict[str, bytes]:
    return {t.name: bytes(t.data.tobytes()) for t in gguf.GGUFReader(path).tensors}


def test_one_file_is_copied_byte_for_byte(source: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.gguf"
    made = write_as_is(open_gguf(source), RECIPE, out)
    assert out.read_bytes() == source.read_bytes()
    assert made.sha256 == sha256_file(out) and made.nbytes == source.stat().st_size
    assert out.stat().st_ino != source.stat().st_ino, "a bundle shares no file with its source"
    assert [path.name for path in tmp_path.iterdir()] == ["out.gguf"]


def test_a_split_model_becomes_one_file_of_the_same_tensors(source: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.gguf"
    made = write_as_is(open_gguf(split(source, tmp_path)), RECIPE, out)
    assert tensor_bytes(out) == tensor_bytes(source)
    assert made.sha256 == sha256_file(out)
    assert read_header(out).split_count == 1


def test_infinity_is_found_in_a_file_taken_as_it_stands(source: Path, tmp_path: Path) -> None:
    bad = tmp_path / "bad.gguf"
    data = bytearray(source.read_bytes())
    header = read_header(source)
    entry = next(t for t in header.tensors if t.type_name == "Q4_0")
    start = header.data_offset + entry.offset
    data[start : start + 2] = np.float16(np.inf).tobytes()
    bad.write_bytes(data)
    with pytest.raises(InputError, match=entry.name.replace(".", r"\.")):
        write_as_is(open_gguf(bad), RECIPE, tmp_path / "out.gguf")
    assert not (tmp_path / "out.gguf").exists()


def test_a_file_that_grew_meanwhile_is_refused(source: Path, tmp_path: Path) -> None:
    moving = tmp_path / "moving.gguf"
    moving.write_bytes(source.read_bytes())
    spec = open_gguf(moving)
    with moving.open("ab") as file:
        file.write(b"more")
    with pytest.raises(InputError, match="when it was opened"):
        write_as_is(spec, RECIPE, tmp_path / "out.gguf")
    assert not (tmp_path / "out.gguf").exists()
