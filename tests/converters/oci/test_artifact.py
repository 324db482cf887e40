"""References, and manifests from strangers: read, or refused with a reason. No registry here."""

from __future__ import annotations

import base64
import hashlib
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from boardfit.converters.oci.artifact import (
    CONFIG_TYPE,
    FILEPATH,
    MAX_LAYERS,
    MAX_TOTAL_BYTES,
    TITLE,
    WEIGHT,
    OciArtifact,
    check_config,
    param_size,
    parse_artifact,
)
from boardfit.converters.oci.credentials import Credentials, find_credentials
from boardfit.converters.oci.registry import parse_reference, redirect_target
from boardfit.edge.errors import EdgeError, InputError, IntegrityError, UnsafeInputError, UsageError

SHA = "sha256:" + "ab" * 32


def layer(path: Any = "x", sha: Any = SHA, size: Any = 5, kind: Any = WEIGHT) -> dict[str, Any]:
    return {
        "mediaType": kind, "digest": sha, "size": size,
        "annotations": {FILEPATH: path, TITLE: path},
    }  # fmt: skip


def manifest(*layers: Any, **changes: Any) -> bytes:
    document = {
        "schemaVersion": 2,
        "config": {"mediaType": CONFIG_TYPE, "digest": SHA, "size": 5},
        "layers": [layer("manifest.json"), layer("SHA256SUMS"), *layers],
        **changes,
    }
    return json.dumps(document).encode()


def parse(data: bytes) -> OciArtifact:
    return parse_artifact(data, "there")


def test_a_plain_manifest_is_read() -> None:
    artifact = parse(manifest(layer("model.gguf"), layer("wheels/a.whl")))
    assert [x.path for x in artifact.layers][2:] == ["model.gguf", "wheels/a.whl"]
    assert artifact.n_bytes == 20


@pytest.mark.parametrize(
    "path",
    ["../x", "/etc/passwd", "a/../b", "./x", "a//b", "", ".hidden", "a/.ssh/x", "C:\\x", "a\\b",
     "x\0y", "x\n", "manifest.json/x", "ä", "-x", "a" * 300],
)  # fmt: skip
def test_paths_that_climb_or_hide_are_refused(path: str) -> None:
    with pytest.raises(UnsafeInputError):
        parse(manifest(layer(path)))


@pytest.mark.parametrize(
    "layers",
    [
        [layer("x"), layer("x")],
        [layer("x"), layer("X")],
        [layer("manifest.json")],
        [layer("a"), layer("a/b")],
        [layer("a/b/c"), layer("A/B")],
        [layer("x"), layer("y", size=6)],  # one digest, two sizes
        [layer("x", size=-1)],
        [layer("x", size=True)],
        [layer("x", size=5.0)],
        [layer("x", size="5")],
        [layer("x", size=None)],
        [layer("x", size=MAX_TOTAL_BYTES + 1)],
        [layer(f"x{i}", sha=f"sha256:{i:064x}", size=MAX_TOTAL_BYTES) for i in range(3)],
        [{**layer("x"), "urls": ["https://elsewhere"]}],
        [{**layer("x"), "annotations": {FILEPATH: "x", TITLE: "y"}}],
        [layer(f"x{i}") for i in range(MAX_LAYERS)],
    ],
)
def test_duplicates_lies_and_floods_are_refused(layers: list[Any]) -> None:
    with pytest.raises(UnsafeInputError):
        parse(manifest(*layers))


@pytest.mark.parametrize(
    "data",
    [
        b"", b"null", b"[]", b"{}", b"{" * 10_000, b'{"a": 1, "a": 2}', manifest(schemaVersion=1),
        manifest(config=None), manifest(config={"mediaType": "x"}), manifest(layers=[]),
        manifest(layers={}), manifest(layers=[layer("only.gguf")]), manifest(None), manifest({}),
        manifest(layer(None)), manifest(layer(5)), manifest(layer(sha="sha512:" + "ab" * 64)),
        manifest(layer(sha="sha256:" + "AB" * 32)), manifest(layer(sha=None)),
        manifest(layer(kind="application/vnd.cncf.model.weight.v1.tar+gzip")),
        manifest(layer(kind="application/vnd.oci.image.layer.v1.tar+gzip")),
    ],
)  # fmt: skip
def test_what_is_no_bundle_is_refused(data: bytes) -> None:
    with pytest.raises(InputError):
        parse(data)


def test_an_empty_file_has_the_digest_of_nothing() -> None:
    empty = "sha256:" + hashlib.sha256(b"").hexdigest()
    assert parse(manifest(layer("x", sha=empty, size=0))).layers[2].n_bytes == 0
    with pytest.raises(IntegrityError):
        parse(manifest(layer("x", sha="sha256:" + "cd" * 32, size=0)))


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=10),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["mediaType", "digest", "size", "annotations", "layers", FILEPATH]),
            inner,
        )
    ),
    max_leaves=8,
)


@settings(max_examples=200, deadline=None)
@given(st.data())
def test_any_manifest_is_read_or_refused(data: st.DataObject) -> None:
    document: Any = json.loads(manifest(layer("model.gguf")))
    place = data.draw(st.sampled_from(["layer", "config", "top"]))
    target = {"layer": document["layers"][2], "config": document["config"], "top": document}[place]
    target[data.draw(st.sampled_from(sorted(target)))] = data.draw(JSON)
    try:
        artifact = parse(json.dumps(document).encode())
    except EdgeError:
        return
    assert all(not x.path.startswith(("/", ".")) and ".." not in x.path for x in artifact.layers)


@settings(max_examples=100, deadline=None)
@given(st.binary(max_size=100))
def test_any_bytes_are_refused(data: bytes) -> None:
    with pytest.raises(EdgeError):
        parse(data)
    with pytest.raises(EdgeError):
        check_config(parse(manifest()), data, "there")


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("ghcr.io/me/kit:pi5", ("ghcr.io", "me/kit", "pi5", None)),
        ("localhost:5000/kit", ("localhost:5000", "kit", "latest", None)),
        (f"r.example/a/b@{SHA}", ("r.example", "a/b", None, SHA)),
        (f"r.example/a/b:v1@{SHA}", ("r.example", "a/b", "v1", SHA)),
        ("[::1]:5000/a", ("[::1]:5000", "a", "latest", None)),
    ],
)
def test_references(text: str, parts: tuple[str, ...]) -> None:
    found = parse_reference(text)
    assert (found.registry, found.repository, found.tag, found.digest) == parts
    assert parse_reference(str(found)) == found


@pytest.mark.parametrize(
    "text",
    ["", "kit", "me/kit", "https://ghcr.io/me/kit", "ghcr.io/", "ghcr.io/Me/kit", "ghcr.io/a:b:c",
     "ghcr.io/a@sha256:12", "ghcr.io/../a", "ghcr.io/a/", "gh cr.io/a", "ghcr.io/a:-x",
     "user@ghcr.io/a", "ghcr.io/a?x=1:v1", "ghcr.io/a:v1\n"],
)  # fmt: skip
def test_what_is_no_reference(text: str) -> None:
    with pytest.raises(UsageError, match="not a reference"):
        parse_reference(text)


@pytest.mark.parametrize(
    ("registry", "loopback"),
    [("localhost:5000", True), ("127.0.0.1:1", True), ("127.9.9.9:1", True), ("[::1]:1", True),
     ("ghcr.io", False), ("127.0.0.1.evil.example", False), ("192.168.1.1:5000", False)],
)  # fmt: skip
def test_only_loopback_is_spoken_to_without_encryption(registry: str, loopback: bool) -> None:
    assert parse_reference(f"{registry}/a").is_loopback is loopback


@pytest.mark.parametrize(
    "target",
    ["http://cdn/x", "file:///etc/passwd", "ftp://x/y", "data:x", "https://me:pw@cdn/x",
     "https://registry\\@cdn/x", "https://[::1", "https://cdn:x/"],
)  # fmt: skip
def test_redirects_never_leave_encryption(target: str) -> None:
    with pytest.raises(UnsafeInputError):
        redirect_target("https://registry/x", target)


def test_redirects_elsewhere_are_fine() -> None:
    for url, location, target in (
        ("https://registry/x", "https://cdn.example/y?sig=1", "https://cdn.example/y?sig=1"),
        ("https://registry/x/y", "z", "https://registry/x/z"),
        ("https://registry/x/y", "/z", "https://registry/z"),
        ("http://localhost/x", "http://localhost:1/y", "http://localhost:1/y"),
    ):
        assert redirect_target(url, location) == target


@pytest.mark.parametrize(
    ("count", "text"),
    [(3_670_016, "3.7m"), (8_000_000_000, "8b"), (500_000, "500k"), (12, None), (None, None)],
)
def test_param_size(count: Any, text: str | None) -> None:
    assert param_size(count) == text


# ---- credentials --------------------------------------------------------------------------------


def write_config(folder: Path, document: Any) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(document))


def test_credentials_of_docker_login(tmp_path: Path) -> None:
    pair = base64.b64encode(b"me:pass:word").decode()
    write_config(tmp_path / "docker", {"auths": {"ghcr.io": {"auth": pair}, "r.io": {}}})
    assert find_credentials("ghcr.io") == Credentials("me", "pass:word")
    assert find_credentials("r.io") is None and find_credentials("other.io") is None
    assert "pass" not in repr(find_credentials("ghcr.io"))
    hub = {"auths": {"https://index.docker.io/v1/": {"auth": pair}}}
    write_config(tmp_path / "docker", hub)
    assert find_credentials("registry-1.docker.io") == Credentials("me", "pass:word")


@pytest.mark.parametrize(
    ("says", "expected"),
    [
        ('{"Username": "me", "Secret": "s"}', Credentials("me", "s")),
        ('{"Username": "<token>", "Secret": "s"}', Credentials(identity_token="s")),
    ],
)
def test_credentials_of_a_helper(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, says: str, expected: Credentials
) -> None:
    write_config(tmp_path / "docker", {"credHelpers": {"ghcr.io": "vault"}})
    program = tmp_path / "bin/docker-credential-vault"
    program.parent.mkdir()
    program.write_text(f"#!/bin/sh\nread name; [ \"$name\" = ghcr.io ] || exit 1\necho '{says}'\n")
    program.chmod(0o755)
    with pytest.raises(InputError, match="does not answer"):
        find_credentials("ghcr.io")
    monkeypatch.setenv("PATH", f"{program.parent}:/usr/bin:/bin")
    assert find_credentials("ghcr.io") == expected


@pytest.mark.parametrize(
    "helper", ["../../evil", "a b", "a;b", ""],
)  # fmt: skip
def test_a_helper_is_a_programs_name(tmp_path: Path, helper: str) -> None:
    write_config(tmp_path / "docker", {"credHelpers": {"ghcr.io": helper}})
    with pytest.raises(InputError, match="not a program"):
        find_credentials("ghcr.io")


@pytest.mark.parametrize("text", ["{", '{"auths": {"ghcr.io": {"auth": "%%%"}}}'])
def test_damaged_credentials_are_an_error_not_anonymous(tmp_path: Path, text: str) -> None:
    (tmp_path / "docker").mkdir()
    (tmp_path / "docker/config.json").write_text(text)
    with pytest.raises(InputError):
        find_credentials("ghcr.io")
