"""What the user may write, and what is said about anything else."""

from __future__ import annotations

from pathlib import Path

import pytest

from boardfit.converters.source.resolve import open_model
from boardfit.edge.errors import InputError, UnsafeInputError


def test_missing_path_suggests_a_neighbour(tmp_path: Path) -> None:
    (tmp_path / "smollm2-135m").mkdir()
    with pytest.raises(InputError, match="Did you mean 'smollm2-135m'"):
        open_model(tmp_path / "smollm2-130m")


@pytest.mark.parametrize(
    "ref", ["", "no-such-thing", "./no/such", "a/b/c", "a/b.gguf", "../x", "a/", "/abs/x", "a b/c"]
)
def test_what_is_neither_path_nor_repository(
    ref: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError):
        open_model(ref)


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pt", "weights.pth", "a.ckpt"])
def test_pickles_are_refused_with_the_way_out(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    path.write_bytes(b"\x80\x04K\x01.")
    with pytest.raises(UnsafeInputError, match="pickle") as caught:
        open_model(path)
    assert "save_pretrained" in str(caught.value.next_step)


@pytest.mark.parametrize("name", ["model.safetensors", "config.json"])
def test_one_file_of_a_checkpoint_points_to_its_directory(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(b"{}")
    with pytest.raises(InputError) as caught:
        open_model(tmp_path / name)
    assert str(tmp_path) in str(caught.value.next_step)


def test_a_directory_with_a_gguf_points_to_the_file(tmp_path: Path) -> None:
    (tmp_path / "m.gguf").write_bytes(b"GGUF")
    with pytest.raises(InputError, match=r"no config\.json") as caught:
        open_model(tmp_path)
    assert str(tmp_path / "m.gguf") in str(caught.value.next_step)


def test_other_files(tmp_path: Path) -> None:
    (tmp_path / "model.onnx").write_bytes(b"x")
    with pytest.raises(InputError, match="neither"):
        open_model(tmp_path / "model.onnx")


def test_an_existing_directory_wins_over_a_repository(
    checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(checkpoint.parent.parent)
    assert open_model(f"{checkpoint.parent.name}/{checkpoint.name}").source.kind == "hf-directory"


def test_neither_torch_nor_transformers_is_loaded(checkpoint: Path) -> None:
    import subprocess
    import sys

    code = (
        "import sys; from boardfit.converters.source.resolve import open_model; "
        "open_model(sys.argv[1]); "
        "print([m for m in ('torch', 'transformers', 'safetensors') if m in sys.modules])"
    )
    root = Path(__file__).parents[3]
    done = subprocess.run(
        [sys.executable, "-c", code, str(checkpoint)], cwd=root, capture_output=True, text=True
    )
    assert done.stdout.strip() == "[]", done.stderr
