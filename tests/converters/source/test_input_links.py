"""What a checkpoint takes from outside itself: nothing, by whatever link. And file sizes."""

from __future__ import annotations

import ast
import json
import os
import shutil
import socket
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from boardfit import converters
from boardfit.converters import documents
from boardfit.converters.build.command import build_command
from boardfit.converters.imatrix.files import read_imatrix
from boardfit.converters.quality.texts import read_text as read_quality_text
from boardfit.converters.sample import MODEL_DIR
from boardfit.converters.source import hf
from boardfit.converters.source.resolve import open_model
from boardfit.converters.tokenizers.files import TokenizerFiles
from boardfit.converters.tokenizers.reference import load_reference
from boardfit.edge.disk.input_folder import is_file_below
from boardfit.edge.errors import EdgeError, InputError, UnsafeInputError
from boardfit.edge.files.kind import open_regular, read_regular

FIRST = "model-00001-of-00003.safetensors"
SECRET = "-----BEGIN OPENSSH PRIVATE KEY-----"
READ = sorted({*hf._DOCUMENTS, *documents._COMPANIONS, FIRST})


@pytest.fixture
def secret(tmp_path: Path) -> Path:
    path = tmp_path / "home" / "id_ed25519"
    path.parent.mkdir()
    path.write_text(SECRET)
    return path


def refused(call: Callable[[], object]) -> str:
    """The message of a refusal: one line, without a word of the file's content."""
    with pytest.raises(UnsafeInputError) as caught:
        call()
    text = f"{caught.value} {caught.value.next_step}"
    assert caught.value.next_step and text.isprintable() and "PRIVATE KEY" not in text
    return str(caught.value)


def plant(path: Path, target: str | Path) -> None:
    path.unlink(missing_ok=True)
    path.symlink_to(target)


# ---- out of the folder --------------------------------------------------------------------------


@pytest.mark.parametrize("name", READ)
def test_no_file_of_a_checkpoint_leads_out_of_it(checkpoint: Path, secret: Path, name: str) -> None:
    original = (checkpoint / name).read_bytes() if (checkpoint / name).is_file() else b"{}"
    secret.write_bytes(original)  # a good file, so that nothing but the link is wrong with it
    for target in (secret, os.path.relpath(secret, checkpoint), secret.parent / "missing"):
        plant(checkpoint / name, target)
        message = refused(lambda: open_model(checkpoint))
        assert name in message and str(secret.parent) in message


def test_links_over_several_steps_and_folders_are_seen_through(
    checkpoint: Path, secret: Path
) -> None:
    licence = checkpoint / "LICENSE"
    (checkpoint / "inner").symlink_to(secret.parent)
    (checkpoint / "step").symlink_to("inner/id_ed25519")
    for target in ("inner/id_ed25519", "step", checkpoint / "step", "inner/../home/id_ed25519"):
        plant(licence, target)
        assert "LICENSE" in refused(lambda: open_model(checkpoint))
    # A sibling whose name begins as the folder's does is outside too.
    twin = checkpoint.with_name(checkpoint.name + "-2")
    twin.mkdir()
    (twin / "LICENSE").write_text("x")
    plant(licence, twin / "LICENSE")
    refused(lambda: open_model(checkpoint))
    plant(licence, "/proc/self/environ")
    refused(lambda: open_model(checkpoint))


def test_a_folder_of_templates_may_not_be_a_link(checkpoint: Path, secret: Path) -> None:
    secret.with_name("one.jinja").write_text(SECRET)
    (checkpoint / "additional_chat_templates").symlink_to(secret.parent)
    config = json.loads((checkpoint / "tokenizer_config.json").read_text())
    config.pop("chat_template", None)
    (checkpoint / "tokenizer_config.json").write_text(json.dumps(config))
    refused(lambda: open_model(checkpoint))


def test_parts_of_a_split_gguf_do_not_lead_out(tmp_path: Path, secret: Path) -> None:
    first = tmp_path / "parts" / "m-00001-of-00002.gguf"
    first.parent.mkdir()
    first.write_bytes(b"GGUF")
    first.with_name("m-00002-of-00002.gguf").symlink_to(secret)
    assert "00002-of" in refused(lambda: open_model(first))


@pytest.mark.engine
def test_a_build_takes_no_private_key_along(tmp_path: Path, secret: Path) -> None:
    checkpoint = tmp_path / "ck"
    shutil.copytree(MODEL_DIR, checkpoint)
    (checkpoint / "NOTICE").symlink_to(secret)
    words = [str(checkpoint), "-d", "raspberry-pi-5-8gb", "-o", str(tmp_path / "out")]
    result = CliRunner().invoke(build_command, words)
    assert isinstance(result.exception, UnsafeInputError) and "NOTICE" in str(result.exception)
    assert {p.name for p in tmp_path.iterdir()} == {"ck", "home"}


# ---- what stays allowed -------------------------------------------------------------------------


def test_links_inside_the_folder_and_to_it_work(checkpoint: Path, tmp_path: Path) -> None:
    before = open_model(checkpoint).source.fingerprint
    (checkpoint / "weights").mkdir()
    for name in (FIRST, "config.json", "README.md"):
        (checkpoint / name).rename(checkpoint / "weights" / name)
        (checkpoint / name).symlink_to(Path("weights") / name)
    (checkpoint / "weights" / "up").symlink_to("..")
    (checkpoint / "LICENSE").symlink_to("weights/up/README.md")
    named = tmp_path / "named-by-the-user"
    named.symlink_to(checkpoint)
    assert open_model(named).source.fingerprint == before
    assert dict(documents.companions(named)) == {"LICENSE": "license", "README.md": "card"}


def hub_cache(checkpoint: Path, repository: Path) -> Path:
    """The checkpoint as huggingface_hub keeps it: a snapshot of links into `blobs`."""
    snapshot = repository / "snapshots" / ("0" * 40)
    (repository / "blobs").mkdir(parents=True)
    snapshot.mkdir(parents=True)
    for i, path in enumerate(sorted(checkpoint.iterdir())):
        path.rename(repository / "blobs" / str(i))
        (snapshot / path.name).symlink_to(f"../../blobs/{i}")
    return snapshot


def test_a_snapshot_of_the_hub_cache_works_and_its_neighbours_stay_out(
    checkpoint: Path, secret: Path, tmp_path: Path
) -> None:
    before = open_model(checkpoint).source.files
    snapshot = hub_cache(checkpoint, tmp_path / "hub" / "models--me--tiny")
    assert open_model(snapshot).source.files == before
    other = tmp_path / "hub" / "models--me--other" / "blobs"
    other.mkdir(parents=True)
    shutil.copy(secret, other / "secret")
    for target in (
        "../../../models--me--other/blobs/secret", "../../blobs/../../../home/id_ed25519",
        "../../refs", secret,
    ):  # fmt: skip
        plant(snapshot / "LICENSE", target)
        refused(lambda: open_model(snapshot))
    # `blobs` itself must be a folder of the repository.
    blobs = snapshot.parents[1] / "blobs"
    blobs.rename(tmp_path / "elsewhere")
    blobs.symlink_to(tmp_path / "elsewhere")
    refused(lambda: open_model(snapshot))


def test_a_folder_called_snapshots_is_no_hub_cache(checkpoint: Path, tmp_path: Path) -> None:
    snapshot = hub_cache(checkpoint, tmp_path / "home-of-somebody")
    (tmp_path / "home-of-somebody" / "letters").mkdir()
    refused(lambda: open_model(snapshot))


def test_a_hub_cache_under_another_name_works(checkpoint: Path, tmp_path: Path) -> None:
    """It is known by what it holds, and a snapshot may lie in it by itself."""
    before = open_model(checkpoint).source.files
    snapshot = hub_cache(checkpoint, tmp_path / "my-model")
    (tmp_path / "my-model" / "refs").mkdir()
    assert open_model(snapshot).source.files == before
    alone = tmp_path / "my-model" / "snapshots"
    for link in sorted(snapshot.iterdir()):
        (alone / link.name).symlink_to(f"../blobs/{os.path.basename(os.readlink(link))}")
    shutil.rmtree(snapshot)
    assert open_model(alone).source.files == before
    secret = tmp_path / "my-model" / "refs" / "main"
    secret.write_text(SECRET)
    plant(alone / "LICENSE", "../refs/main")
    refused(lambda: open_model(alone))


def test_a_snapshot_without_its_blobs_names_the_way_out(checkpoint: Path, tmp_path: Path) -> None:
    snapshot = hub_cache(checkpoint, tmp_path / "hub" / "models--me--tiny")
    shutil.copytree(snapshot, tmp_path / "copied", symlinks=True)
    with pytest.raises(UnsafeInputError, match="which is not there") as caught:
        open_model(tmp_path / "copied")
    assert "cp -rL" in str(caught.value.next_step)


# ---- regular files of a usual size --------------------------------------------------------------


def test_pipes_sockets_devices_and_circles_are_refused_at_once(
    checkpoint: Path, tmp_path: Path
) -> None:
    notice = checkpoint / "NOTICE"
    os.mkfifo(notice)
    assert "pipe" in refused(lambda: open_model(checkpoint))
    with pytest.raises(InputError):
        documents.read_bytes(notice)
    notice.unlink()
    notice.symlink_to("COPYING")
    (checkpoint / "COPYING").symlink_to("NOTICE")
    assert "circle" in refused(lambda: open_model(checkpoint))
    (checkpoint / "COPYING").unlink()
    with socket.socket(socket.AF_UNIX) as one:
        notice.unlink()
        one.bind(os.path.relpath(notice))
        refused(lambda: open_model(checkpoint))
    notice.unlink()
    notice.mkdir()  # a folder of that name is the author's own affair
    assert "NOTICE" not in dict(documents.companions(checkpoint))
    open_model(checkpoint)


def sparse(path: Path, n_bytes: int) -> None:
    with path.open("ab") as file:
        file.truncate(n_bytes)


def test_a_card_of_3_gb_is_neither_read_nor_copied(checkpoint: Path) -> None:
    sparse(checkpoint / "README.md", 3 << 30)
    sparse(checkpoint / "LICENSE", 2 << 20)
    spec = open_model(checkpoint)
    assert dict(documents.companions(checkpoint)) == {}
    assert any("README.md is left out" in note for note in spec.notes)
    assert any("LICENSE is left out" in note for note in spec.notes)


def test_empty_cards_and_licences_are_no_fault(checkpoint: Path) -> None:
    for name in ("README.md", "LICENSE", "special_tokens_map.json"):
        (checkpoint / name).write_bytes(b"")
    (checkpoint / "special_tokens_map.json").write_text("{}")
    assert open_model(checkpoint).source.files["README.md"] == 0
    assert dict(documents.companions(checkpoint)) == {}


@pytest.mark.parametrize(
    "name",
    ["config.json", "tokenizer.json", "tokenizer_config.json", "chat_template.jinja",
     "model.safetensors.index.json", "special_tokens_map.json", "added_tokens.json"],
)  # fmt: skip
def test_other_files_of_3_gb_are_refused(checkpoint: Path, name: str) -> None:
    sparse(checkpoint / name, 3 << 30)
    assert "3.00 GiB" in refused(lambda: open_model(checkpoint))


def added(tokens: dict[str, int]) -> dict[str, Any]:
    return {"added_tokens": [{"id": i, "content": text} for text, i in tokens.items()]}


@pytest.mark.parametrize(
    ("name", "document"),
    [
        ("tokenizer.json", added({"x" * (4 << 20): 1})),
        ("tokenizer.json", added({f"{i:0>1000}": i for i in range(5000)})),
        ("tokenizer_config.json", {"added_tokens_decoder": {"1": {"content": "y" * 5000}}}),
        ("added_tokens.json", {"z" * 5000: 1}),
    ],
)
def test_added_tokens_have_the_length_of_tokens(
    tmp_path: Path, name: str, document: dict[str, Any]
) -> None:
    (tmp_path / name).write_text(json.dumps(document))
    files = TokenizerFiles(tmp_path, {})

    def read() -> object:
        return files.json_added_tokens, files.config_added_tokens, files.legacy_added_tokens

    assert name in refused(read)


def test_5000_added_tokens_take_no_minutes(checkpoint: Path) -> None:
    """Added one by one they take time in the square of their number."""
    document = json.loads((checkpoint / "tokenizer.json").read_text())
    known = {*document["model"]["vocab"].values(), *(t["id"] for t in document["added_tokens"])}
    for i in range(5000):
        token = {"id": max(known) + 1 + i, "content": f"<|x{i}|>", "special": i % 2 == 0}
        flags = dict.fromkeys(("normalized", "lstrip", "rstrip", "single_word"), False)
        document["added_tokens"].append({**token, **flags})
    (checkpoint / "tokenizer.json").write_text(json.dumps(document))
    began_s = time.monotonic()
    reference = load_reference(TokenizerFiles(checkpoint, {}))
    assert reference.encode("<|x7|><|x4999|>") == [max(known) + 8, max(known) + 5000]
    assert time.monotonic() - began_s < 60


def test_a_token_of_the_vocabulary_of_4_mb_is_refused(checkpoint: Path) -> None:
    document = json.loads((checkpoint / "tokenizer.json").read_text())
    vocab = document["model"]["vocab"]
    last = max(vocab, key=vocab.__getitem__)
    vocab["ab" * (2 << 20)] = vocab.pop(last)
    document["model"]["merges"] = document["model"]["merges"][:-1]
    (checkpoint / "tokenizer.json").write_text(json.dumps(document))
    refused(lambda: open_model(checkpoint))


@pytest.mark.parametrize("read", [read_quality_text, read_imatrix])
def test_texts_and_imatrices_that_are_pipes_do_not_wait(
    tmp_path: Path, read: Callable[[Path], object]
) -> None:
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "pipe", Path("/dev/zero"), tmp_path / "none"):
        with pytest.raises(EdgeError):
            read(path)


# ---- the helper ---------------------------------------------------------------------------------


def test_open_regular_reads_below_a_folder_only(tmp_path: Path, secret: Path) -> None:
    folder = tmp_path / "folder"
    (folder / "deep").mkdir(parents=True)
    (folder / "deep" / "file").write_text("inside")
    (folder / "link").symlink_to("deep/file")
    (folder / "out").symlink_to(secret)
    assert read_regular(folder / "link", 10, below=folder) == b"inside"
    assert is_file_below(folder, "link") and not is_file_below(folder, "deep")
    assert not is_file_below(folder, "none") and not is_file_below(folder, "link/none")
    for path in (folder / "out", folder / ".." / "home" / "id_ed25519", secret):
        refused(lambda path=path: open_regular(path, below=folder))  # type: ignore[misc]
    assert read_regular(folder / "out", 100) == SECRET.encode(), "a file that the user named"
    refused(lambda: read_regular(folder / "link", 3, below=folder))
    with pytest.raises(InputError, match="regular file"):
        open_regular(folder / "deep", below=folder)
    with pytest.raises(InputError, match="no such file"):
        open_regular(folder / "none", below=folder)


def test_checkpoints_are_read_through_the_helper_only() -> None:
    """A lint: whoever opens a checkpoint's file by its path alone follows a link out of it."""
    root = Path(converters.__file__).parent
    own = {"hub.py", "resolve.py"}  # our cache, and what the user named
    wrong = []
    for pattern in ("documents.py", "source/*.py", "tokenizers/*.py", "families/*.py"):
        for path in sorted(root.glob(pattern)):
            for node in ast.walk(ast.parse(path.read_text())):
                name = node.attr if isinstance(node, ast.Attribute) else ""
                if path.name not in own and name in {
                    "read_text", "read_bytes", "is_file", "open", "copyfile", "copy", "from_file",
                    "LoadFromFile", "exists",
                }:  # fmt: skip
                    wrong.append(f"{path.name}:{node.lineno} {name}")
    assert not wrong
