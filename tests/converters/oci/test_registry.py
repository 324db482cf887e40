"""Push and pull against a real docker-registry, with everything that goes wrong in between."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from boardfit.converters.oci import push as push_module
from boardfit.converters.oci.artifact import bundle_layers, make_config, make_manifest
from boardfit.converters.oci.pull import Pulled, pull
from boardfit.converters.oci.push import Pushed, push
from boardfit.converters.oci.registry import TRIES
from boardfit.edge.bundle.bundle import MANIFEST, bundle_signers, open_bundle
from boardfit.edge.bundle.sign import sign_bundle
from boardfit.edge.disk.rooted import MARKER
from boardfit.edge.errors import (
    DeviceUnreachableError,
    DoesNotFitError,
    InputError,
    IntegrityError,
    UnsafeInputError,
    UsageError,
)
from boardfit.edge.terminal.progress import Reporter
from boardfit.edge.trust.bundle_signature import SIGNATURE
from boardfit.edge.trust.release import new_release
from boardfit.edge.trust.signing import load_signing_key, new_key
from tests.converters.oci.conftest import connect
from tests.converters.oci.registries import DockerRegistry, Relay, TokenServer, docker_config

pytestmark = pytest.mark.xdist_group("oci")


def quiet() -> Reporter:
    return Reporter()


def put(bundle: Path, address: str, repository: str, tag: str = "v1") -> Pushed:
    with connect(address, repository, tag) as registry:
        return push(open_bundle(bundle), registry, quiet())


def get(address: str, repository: str, output: Path, *keys: Any) -> Pulled:
    with connect(address, repository) as registry:
        return pull(registry, output, quiet(), keys)


def same(one: Path, two: Path) -> bool:
    names = [sorted(p.relative_to(top) for p in top.rglob("*")) for top in (one, two)]
    return names[0] == names[1] and all(
        (one / n).read_bytes() == (two / n).read_bytes() for n in names[0] if (one / n).is_file()
    )


def model_digest(bundle: Path) -> str:
    return open_bundle(bundle).model_file.sha256


# ---- the way there and back ---------------------------------------------------------------------


def test_a_bundle_comes_back_byte_for_byte_with_its_signature(
    server: DockerRegistry, bundle: Path, repository: str, tmp_path: Path
) -> None:
    new_key(tmp_path / "key", None, "me")
    new_key(tmp_path / "stranger", None, "not me")
    key, stranger = (load_signing_key(tmp_path / n) for n in ("key", "stranger"))
    sign_bundle(bundle, key)
    pushed = put(bundle, server.address, repository)
    pulled = get(server.address, repository, tmp_path / "out", key.public)
    assert same(bundle, tmp_path / "out") and not (tmp_path / "out.partial").exists()
    assert pulled.signed_by == key.public.fingerprint
    assert pulled.digest == pushed.digest and pulled.bundle == pushed.bundle
    # One of the two equal files came from the other.
    assert pulled.n_received == pulled.n_bytes - 8000
    with pytest.raises(IntegrityError, match="is signed by"):
        get(server.address, repository, tmp_path / "refused", stranger.public)
    assert not (tmp_path / "refused.partial").exists()  # nothing large was fetched


def test_what_is_there_is_not_sent_again(
    server: DockerRegistry, relay: Relay, bundle: Path, repository: str, tmp_path: Path
) -> None:
    first = put(bundle, server.address, repository)
    again = put(bundle, relay.address, repository, "v2")
    assert again.n_sent == 0 and again.digest == first.digest
    assert relay.count("POST", "/blobs/uploads/") == 0
    changed = tmp_path / "changed"
    shutil.copytree(bundle, changed)
    new_key(tmp_path / "key", None, "me")
    sign_bundle(changed, load_signing_key(tmp_path / "key"))
    third = put(changed, relay.address, repository, "v3")
    assert 0 < third.n_sent < 10_000  # signature and config


def test_pulling_again_changes_nothing_and_never_overwrites(
    server: DockerRegistry, bundle: Path, repository: str, tmp_path: Path
) -> None:
    put(bundle, server.address, repository)
    get(server.address, repository, tmp_path / "out")
    assert get(server.address, repository, tmp_path / "out").n_received == 0
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/diary.txt").write_text("dear")
    with pytest.raises(UsageError, match="exists"):
        get(server.address, repository, tmp_path / "mine")
    assert (tmp_path / "mine/diary.txt").read_text() == "dear"
    with pytest.raises(UsageError, match="is not a folder"):
        get(server.address, repository, tmp_path / "mine/diary.txt/out")
    assert get(server.address, repository, tmp_path / "new/folder/out").n_received


def test_a_manifest_follows_modelpack(bundle: Path) -> None:
    opened = open_bundle(bundle)
    layers = bundle_layers(opened)
    config = make_config(opened, layers)
    manifest = json.loads(make_manifest(opened, layers, config, []))
    assert manifest["artifactType"] == "application/vnd.cncf.model.manifest.v1+json"
    assert manifest["config"]["mediaType"] == "application/vnd.cncf.model.config.v1+json"
    weight = next(x for x in manifest["layers"] if x["size"] == 3 << 20)
    assert weight["mediaType"] == "application/vnd.cncf.model.weight.v1.raw"
    assert weight["annotations"]["org.cncf.model.filepath"] == "model.gguf"
    notes = manifest["annotations"]
    assert notes["boardfit.board"] == "raspberry-pi-4b-4gb" and notes["boardfit.recipe"] == "q4_k_m"
    assert notes["boardfit.peak_bytes"] == str(opened.plan.peak_bytes)
    document = json.loads(config)
    assert document["modelfs"]["diffIds"] == [x["digest"] for x in manifest["layers"]]
    assert document["config"]["format"] == "gguf"
    assert make_config(opened, layers) == config  # no times: the same bytes


# ---- cut connections ----------------------------------------------------------------------------


def test_a_pull_survives_cuts_and_asks_only_for_the_rest(
    server: DockerRegistry, relay: Relay, bundle: Path, repository: str, tmp_path: Path
) -> None:
    put(bundle, server.address, repository)
    relay.cut_after, relay.cuts_left = 1 << 20, 2
    pulled = get(relay.address, repository, tmp_path / "out")
    assert same(bundle, tmp_path / "out")
    ranges = [
        h["Range"] for _, p, h in relay.requests if model_digest(bundle) in p and "Range" in h
    ]
    assert ranges == ["bytes=1048576-", "bytes=2097152-"]
    assert pulled.n_received == pulled.n_bytes - 8000


def test_a_pull_that_ended_goes_on_in_the_next(
    server: DockerRegistry, relay: Relay, bundle: Path, repository: str, tmp_path: Path
) -> None:
    put(bundle, server.address, repository)
    relay.cut_after, relay.cuts_left, relay.dead_after_cut = 1_500_000, 1, True
    with pytest.raises(InputError, match="answers 503"):
        get(relay.address, repository, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    relay.status.clear()
    again = get(relay.address, repository, tmp_path / "out")
    assert same(bundle, tmp_path / "out") and again.n_there >= 1_500_000
    assert again.n_received < again.n_bytes - 1_500_000 + 1


def test_a_damaged_part_of_an_earlier_pull_costs_one_more_try(
    server: DockerRegistry, bundle: Path, repository: str, tmp_path: Path
) -> None:
    put(bundle, server.address, repository)
    made = tmp_path / "out.partial/bundle"
    made.mkdir(parents=True)
    (tmp_path / "out.partial" / MARKER).touch()
    (made / "model.gguf").write_bytes(b"wrong" * 1000)
    (made / "evil.sh").write_text("echo")
    (tmp_path / "out.partial/bundle/parts").symlink_to(tmp_path)
    get(server.address, repository, tmp_path / "out")
    assert same(bundle, tmp_path / "out")


def test_a_registry_without_ranges_sends_everything_again(
    server: DockerRegistry, relay: Relay, bundle: Path, repository: str, tmp_path: Path
) -> None:
    put(bundle, server.address, repository)
    relay.strip_range, relay.cut_after, relay.cuts_left = True, 1 << 20, 1
    pulled = get(relay.address, repository, tmp_path / "out")
    assert same(bundle, tmp_path / "out")
    assert pulled.n_received == pulled.n_bytes - 8000 + (1 << 20) and pulled.n_there == 8000


def test_a_connection_that_always_breaks_ends_with_the_parts_kept(
    server: DockerRegistry, relay: Relay, bundle: Path, repository: str, tmp_path: Path
) -> None:
    put(bundle, server.address, repository)
    relay.strip_range, relay.cut_after, relay.cuts_left = True, 1 << 20, 1000
    with pytest.raises(DeviceUnreachableError, match="broke 5 times"):
        get(relay.address, repository, tmp_path / "out")
    assert (tmp_path / "out.partial/bundle/model.gguf").stat().st_size == 1 << 20
    assert not (tmp_path / "out").exists()


def test_a_push_goes_on_after_a_cut(
    relay: Relay, bundle: Path, repository: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(push_module, "CHUNK_BYTES", 1 << 20)
    relay.cut_uploads_after, relay.cuts_left = 1 << 19, 3
    put(bundle, relay.address, repository)
    assert relay.cuts_left == 0 and relay.count("PATCH", "/blobs/uploads/") > 3
    get(relay.address, repository, tmp_path / "out")
    assert same(bundle, tmp_path / "out")


def test_a_busy_registry_is_asked_again(
    server: DockerRegistry, relay: Relay, bundle: Path, repository: str, tmp_path: Path
) -> None:
    put(bundle, server.address, repository)
    relay.busy = TRIES - 1
    get(relay.address, repository, tmp_path / "out")
    relay.busy = 1000
    with pytest.raises(InputError, match="answers 503"):
        get(relay.address, repository, tmp_path / "again")


# ---- what is not what it says -------------------------------------------------------------------


def test_a_blob_altered_in_the_registrys_store_is_noticed(
    server: DockerRegistry, bundle: Path, repository: str, tmp_path: Path
) -> None:
    put(bundle, server.address, repository)
    stored = server.blob_file(model_digest(bundle))
    data = bytearray(stored.read_bytes())
    data[1_234_567] ^= 1
    stored.write_bytes(data)
    with pytest.raises(IntegrityError, match="does not match its digest"):
        get(server.address, repository, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("change", [lambda d: d[:-1], lambda d: d + b"x", lambda d: b""])
def test_a_blob_of_another_length_is_noticed(
    server: DockerRegistry, relay: Relay, bundle: Path, repository: str, tmp_path: Path,
    change: Callable[[bytes], bytes],
) -> None:  # fmt: skip
    put(bundle, server.address, repository)
    relay.replace[model_digest(bundle)] = change((bundle / "model.gguf").read_bytes())
    with pytest.raises((IntegrityError, UnsafeInputError, DeviceUnreachableError, InputError)):
        get(relay.address, repository, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_small_layers_and_config_are_compared_before_anything_large_comes(
    server: DockerRegistry, relay: Relay, bundle: Path, repository: str, tmp_path: Path
) -> None:
    put(bundle, server.address, repository)
    manifest = (bundle / MANIFEST).read_bytes()
    digest = hashlib.sha256(manifest).hexdigest()
    for body in (manifest.replace(b"cargo", b"carga"), manifest[:-1], manifest + b" "):
        relay.replace[digest] = body
        with pytest.raises((IntegrityError, UnsafeInputError)):
            get(relay.address, repository, tmp_path / "out")
    assert relay.count("GET", model_digest(bundle)) == 0


def test_a_manifest_by_digest_must_have_it(
    server: DockerRegistry, relay: Relay, bundle: Path, repository: str, tmp_path: Path
) -> None:
    from boardfit.converters.oci.registry import Registry, parse_reference

    digest = put(bundle, server.address, repository).digest
    reference = parse_reference(f"{relay.address}/{repository}@{digest}")
    with Registry(reference) as registry:
        pull(registry, tmp_path / "out", quiet())
        relay.replace[digest] = registry.manifest().replace(b"q4_k_m", b"q4_k_s")
        with pytest.raises(IntegrityError, match="another manifest"):
            pull(registry, tmp_path / "other", quiet())
        with pytest.raises(UsageError, match="needs a tag"):
            push(open_bundle(bundle), registry, quiet())


def test_a_range_that_is_not_the_one_asked_for_is_refused(
    server: DockerRegistry, relay: Relay, bundle: Path, repository: str, tmp_path: Path
) -> None:
    put(bundle, server.address, repository)
    relay.cut_after, relay.cuts_left, relay.wrong_content_range = 1 << 20, 1, True
    with pytest.raises(InputError, match="was asked for bytes from"):
        get(relay.address, repository, tmp_path / "out")


# ---- mirrors, credentials, refusals -------------------------------------------------------------


def test_blobs_on_another_host_are_fetched_without_our_token(
    bundle: Path, repository: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As cloud registries do it: manifests here, blobs behind a redirect to a store."""
    with (
        TokenServer(tmp_path / "tokens", "me", "secret") as tokens,
        DockerRegistry(tmp_path / "registry", tokens.auth) as private,
        Relay(private.port) as front,
    ):
        with docker_config(tmp_path / "docker", front.address, "me", "secret"):
            put(bundle, front.address, repository)
        assert tokens.asked[0][0] is not None and "push" in " ".join(s for _, s in tokens.asked)
        # Another registry with the same blobs plays the store.
        with DockerRegistry(tmp_path / "store") as open_store, Relay(open_store.port) as store:
            put(bundle, open_store.address, repository)
            front.redirect_blobs_to = f"http://{store.address}"
            pulled = get(front.address, repository, tmp_path / "out")
            assert same(bundle, tmp_path / "out") and pulled.n_received > 3 << 20
            assert store.requests and not any("Authorization" in h for _, _, h in store.requests)
            assert any("Authorization" in h for _, _, h in front.requests)


def test_tokens_anonymous_and_not(bundle: Path, repository: str, tmp_path: Path) -> None:
    with (
        TokenServer(tmp_path / "tokens", "me", "secret") as tokens,
        DockerRegistry(tmp_path / "registry", tokens.auth) as private,
    ):
        with pytest.raises(InputError, match="users without credentials"):
            put(bundle, private.address, repository)
        with (
            docker_config(tmp_path / "docker", private.address, "me", "wrong"),
            pytest.raises(InputError, match="does not let these credentials"),
        ):
            put(bundle, private.address, repository)
        with docker_config(tmp_path / "docker", private.address, "me", "secret") as config:
            put(bundle, private.address, repository)
        config.unlink()
        get(private.address, repository, tmp_path / "out")  # anybody may pull
        assert same(bundle, tmp_path / "out") and tokens.asked[-1][0] is None


def test_basic_authentication(bundle: Path, repository: str, tmp_path: Path) -> None:
    bcrypt = pytest.importorskip("bcrypt")
    hashed = bcrypt.hashpw(b"secret", bcrypt.gensalt(4)).decode()
    (tmp_path / "htpasswd").write_text(f"me:{hashed}\n")
    auth = {"htpasswd": {"realm": "test", "path": str(tmp_path / "htpasswd")}}
    with DockerRegistry(tmp_path / "registry", auth) as private:
        with pytest.raises(InputError, match="without credentials"):
            put(bundle, private.address, repository)
        with docker_config(tmp_path / "docker", private.address, "me", "secret"):
            put(bundle, private.address, repository)
            get(private.address, repository, tmp_path / "out")
    assert same(bundle, tmp_path / "out")


def test_what_is_not_there_is_named(
    server: DockerRegistry, bundle: Path, repository: str, tmp_path: Path
) -> None:
    with pytest.raises(InputError, match=r"there is no .*unknown"):
        get(server.address, repository, tmp_path / "out")
    put(bundle, server.address, repository, "v10")
    with pytest.raises(InputError, match=r"has no 'v1'\. Did you mean 'v10'"):
        get(server.address, repository, tmp_path / "out")


def test_a_container_image_is_no_model(
    server: DockerRegistry, relay: Relay, bundle: Path, repository: str, tmp_path: Path
) -> None:
    image = {
        "schemaVersion": 2,
        "config": {"mediaType": "application/vnd.oci.image.config.v1+json", "size": 2,
                   "digest": "sha256:" + "0" * 64},
        "layers": [],
    }  # fmt: skip
    relay.replace["manifests/v1"] = json.dumps(image).encode()
    with pytest.raises(InputError, match="not a model artifact"):
        get(relay.address, repository, tmp_path / "out")
    relay.replace["manifests/v1"] = b'{"schemaVersion": 2, "manifests": []}'
    with pytest.raises(InputError, match="index of several"):
        get(relay.address, repository, tmp_path / "out")


def test_nobody_there(bundle: Path, tmp_path: Path) -> None:
    with pytest.raises(DeviceUnreachableError, match="does not answer"):
        get("127.0.0.1:1", "edge/kit", tmp_path / "out")


def test_a_disk_that_is_too_small_is_told_before_the_first_large_byte(
    server: DockerRegistry, relay: Relay, bundle: Path, repository: str, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    put(bundle, server.address, repository)
    usage = shutil.disk_usage(tmp_path)._replace(free=1 << 20)
    monkeypatch.setattr("boardfit.converters.oci.pull.shutil.disk_usage", lambda _: usage)
    with pytest.raises(DoesNotFitError, match=r"the pull needs .* MiB"):
        get(relay.address, repository, tmp_path / "out")
    assert relay.count("GET", model_digest(bundle)) == 0


def test_a_pull_with_a_key_brings_a_missing_signature(
    server: DockerRegistry, bundle: Path, repository: str, tmp_path: Path
) -> None:
    new_key(tmp_path / "key", None, "me")
    key = load_signing_key(tmp_path / "key")
    sign_bundle(bundle, key)
    plain = tmp_path / "plain"
    shutil.copytree(bundle, plain)
    (plain / SIGNATURE).unlink()
    put(bundle, server.address, repository)
    pulled = get(server.address, repository, plain, key.public)
    assert pulled.signed_by == key.public.fingerprint
    assert bundle_signers(open_bundle(plain)) == [key.public]


def test_a_signature_that_is_here_and_accepted_stays(
    server: DockerRegistry, bundle: Path, repository: str, tmp_path: Path
) -> None:
    new_key(tmp_path / "key", None, "me")
    new_key(tmp_path / "other", None, "another")
    key = load_signing_key(tmp_path / "key")
    sign_bundle(bundle, key)
    put(bundle, server.address, repository)
    sign_bundle(bundle, load_signing_key(tmp_path / "other"))
    get(server.address, repository, bundle, key.public)
    assert len(bundle_signers(open_bundle(bundle))) == 2


def test_a_registry_serves_no_older_release(
    server: DockerRegistry, bundle: Path, repository: str, tmp_path: Path
) -> None:
    new_key(tmp_path / "key", None, "me")
    key = load_signing_key(tmp_path / "key")
    for number in (2, 1):
        copy = shutil.copytree(bundle, tmp_path / f"signed{number}")
        sign_bundle(copy, key, new_release(number))
        put(copy, server.address, repository)
        if number == 2:
            get(server.address, repository, tmp_path / "out2", key.public)
    with pytest.raises(IntegrityError, match="release 1 of cargo is older than 2"):
        get(server.address, repository, tmp_path / "out1", key.public)
    assert not (tmp_path / "out1").exists() and not (tmp_path / "out1.partial").exists()
    with connect(server.address, repository) as registry:
        pull(registry, tmp_path / "out1", quiet(), [key.public], allow_older=True)
    assert same(tmp_path / "signed1", tmp_path / "out1")
