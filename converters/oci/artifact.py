"""The OCI manifest of a bundle, both ways. Pure.

The form is CNCF ModelPack's (github.com/modelpack/model-spec: specs-go/v1): a config of type
`application/vnd.cncf.model.config.v1+json`, one uncompressed `….raw` layer per file whose path is
its annotation `org.cncf.model.filepath`. The bundle's own manifest, hashes and signature are layers
like any other, so that what comes out of a registry is the bundle, byte for byte. No times: the
same bundle gives the same digest.
"""

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from boardfit.edge.bundle.bundle import (
    MANIFEST,
    MAX_FILES,
    SUMS,
    Bundle,
    check_name,
    refuse_duplicates,
)
from boardfit.edge.errors import InputError, IntegrityError, UnsafeInputError
from boardfit.edge.trust.bundle_signature import SIGNATURE
from boardfit.edge.units import format_bytes, printable

MANIFEST_TYPE = "application/vnd.oci.image.manifest.v1+json"
INDEX_TYPES = (
    "application/vnd.oci.image.index.v1+json",
    "application/vnd.docker.distribution.manifest.list.v2+json",
)
ARTIFACT_TYPE = "application/vnd.cncf.model.manifest.v1+json"
CONFIG_TYPE = "application/vnd.cncf.model.config.v1+json"
_PREFIX = "application/vnd.cncf.model."
WEIGHT, WEIGHT_CONFIG, DOC, CODE = (
    f"{_PREFIX}{kind}.v1.raw" for kind in ("weight", "weight.config", "doc", "code")
)
RAW_TYPES = (WEIGHT, WEIGHT_CONFIG, DOC, CODE, f"{_PREFIX}dataset.v1.raw")
_TYPE_OF_ROLE = {
    **dict.fromkeys(("model", "part", "prefix"), WEIGHT),
    **dict.fromkeys(("license", "card"), DOC),
    **dict.fromkeys(("wheel", "launcher", "unit", "tool"), CODE),
}
FILEPATH, TITLE = "org.cncf.model.filepath", "org.opencontainers.image.title"

MAX_MANIFEST_BYTES = 4 * 1024 * 1024
MAX_CONFIG_BYTES = 1024 * 1024
#: Beside the bundle's files: its manifest, hashes and signature.
MAX_LAYERS = MAX_FILES + 3
#: No board holds more; a size beyond is a lie.
MAX_TOTAL_BYTES = 1 << 40
#: What describes the bundle, and is no file of it.
_OWN = (MANIFEST, SUMS, SIGNATURE)
_DIGEST = re.compile(r"sha256:[0-9a-f]{64}")


@dataclass(frozen=True)
class OciLayer:
    """One file of the bundle: plain relative path, lower-case hex sha256, size in bytes."""

    path: str
    sha256: str
    n_bytes: int
    media_type: str

    def descriptor(self) -> dict[str, Any]:
        return {
            "mediaType": self.media_type,
            "digest": f"sha256:{self.sha256}",
            "size": self.n_bytes,
            "annotations": {FILEPATH: self.path, TITLE: self.path},
        }


@dataclass(frozen=True)
class OciArtifact:
    """A checked manifest."""

    config_sha256: str
    config_n_bytes: int
    layers: tuple[OciLayer, ...]

    @property
    def n_bytes(self) -> int:
        return sum(layer.n_bytes for layer in self.layers)

    def layer(self, path: str) -> OciLayer | None:
        return next((layer for layer in self.layers if layer.path == path), None)


# ---- from a bundle ------------------------------------------------------------------------------


def bundle_layers(bundle: Bundle) -> list[OciLayer]:
    """Every file of an opened bundle, those that describe it first: a pull reads them first."""
    own = [(name, bundle.texts[name]) for name in _OWN if name in bundle.texts]
    return [
        *(OciLayer(n, hashlib.sha256(d).hexdigest(), len(d), WEIGHT_CONFIG) for n, d in own),
        *(
            OciLayer(f.name, f.sha256, f.n_bytes, _TYPE_OF_ROLE.get(f.role, WEIGHT_CONFIG))
            for f in bundle.files
        ),
    ]


def make_config(bundle: Bundle, layers: list[OciLayer]) -> bytes:
    """ModelPack's model config: what it is, and the digest of every layer in order."""
    model, recipe, plan = bundle.manifest["model"], bundle.manifest["recipe"], bundle.plan
    source = model.get("source") if isinstance(model.get("source"), dict) else {}
    descriptor = {
        "name": bundle.name,
        "family": model.get("family"),
        "licenses": [model["license"]] if isinstance(model.get("license"), str) else None,
        "revision": source.get("revision"),
        "version": bundle.id[:12],
    }
    config = {
        "architecture": model.get("arch"),
        "format": bundle.model_file.name.rpartition(".")[2],
        "paramSize": param_size(model.get("n_params")),
        "precision": "mixed",
        "quantization": plan.recipe,
        "capabilities": {"inputTypes": ["text"], "outputTypes": ["text"]},
    }
    document = {
        "descriptor": {k: v for k, v in descriptor.items() if v is not None},
        "config": {k: v for k, v in config.items() if v is not None},
        "modelfs": {"type": "layers", "diffIds": [f"sha256:{layer.sha256}" for layer in layers]},
    }
    if isinstance(recipe.get("bpw"), (int, float)):
        document["config"]["precision"] = f"{recipe['bpw']:.2f} bits per weight"
    return _canonical(document)


def make_manifest(
    bundle: Bundle, layers: list[OciLayer], config: bytes, signers: list[str]
) -> bytes:
    """The OCI manifest. Figures that help to choose one stand in its annotations."""
    plan = bundle.plan
    annotations = {
        TITLE: bundle.name,
        "org.opencontainers.image.licenses": bundle.manifest["model"].get("license"),
        "boardfit.bundle": bundle.id,
        "boardfit.board": plan.device,
        "boardfit.engine": plan.engine,
        "boardfit.recipe": plan.recipe,
        "boardfit.context": str(plan.n_ctx),
        "boardfit.peak_bytes": str(plan.peak_bytes),
        "boardfit.decode_tps": None if plan.decode_tps is None else f"{plan.decode_tps:.2f}",
        "boardfit.signed_by": ", ".join(signers) or None,
    }
    document = {
        "schemaVersion": 2,
        "mediaType": MANIFEST_TYPE,
        "artifactType": ARTIFACT_TYPE,
        "config": {
            "mediaType": CONFIG_TYPE,
            "digest": f"sha256:{hashlib.sha256(config).hexdigest()}",
            "size": len(config),
        },
        "layers": [layer.descriptor() for layer in layers],
        "annotations": {k: v for k, v in annotations.items() if isinstance(v, str)},
    }
    return _canonical(document)


def param_size(count: Any) -> str | None:
    """`3670016` → `3.7m`: ModelPack's decimal count with one letter."""
    if not isinstance(count, int) or count <= 0:
        return None
    for letter, unit in (("t", 10**12), ("b", 10**9), ("m", 10**6), ("k", 10**3)):
        if count >= unit:
            return f"{count / unit:.1f}".removesuffix(".0") + letter
    return None


def _canonical(document: Mapping[str, Any]) -> bytes:
    return json.dumps(document, sort_keys=True, separators=(",", ":"), ensure_ascii=False,
                      allow_nan=False).encode()  # fmt: skip


# ---- from a registry ----------------------------------------------------------------------------


def parse_artifact(data: bytes, place: str) -> OciArtifact:
    """Read a manifest. `place` names it in messages. Raises InputError when it is no model artifact
    or no bundle, UnsafeInputError for paths that leave the folder, meet each other, for too many
    layers and impossible sizes.
    """
    document = _parse_json(data, place)
    kind = document.get("mediaType")
    if kind in INDEX_TYPES or "manifests" in document:
        raise InputError(
            f"{place} is an index of several artifacts",
            next_step="name one of them by its digest: …@sha256:…",
        )
    config = document.get("config")
    if (
        document.get("schemaVersion") != 2
        or not isinstance(config, dict)
        or config.get("mediaType") != CONFIG_TYPE
    ):
        got = config.get("mediaType") if isinstance(config, dict) else kind
        raise InputError(
            f"{place} is not a model artifact: its config is {printable(str(got), 80)!r}, expected "
            f"{CONFIG_TYPE!r}",
            next_step="edge push puts a bundle into a registry; is this a container image?",
        )
    layers = document.get("layers")
    if not isinstance(layers, list) or not layers:
        raise InputError(f"{place}: the manifest has no layers")
    if len(layers) > MAX_LAYERS:
        raise UnsafeInputError(f"{place}: {len(layers)} layers; {MAX_LAYERS} is the most")
    config_sha, config_bytes = _descriptor(config, place, "config")
    if config_bytes > MAX_CONFIG_BYTES:
        raise UnsafeInputError(f"{place}: its config has {config_bytes} bytes")
    found = tuple(_layer(entry, place) for entry in layers)
    check_paths(found, place)
    if sum(layer.n_bytes for layer in found) > MAX_TOTAL_BYTES:
        raise UnsafeInputError(
            f"{place}: its layers claim more than {format_bytes(MAX_TOTAL_BYTES)} together"
        )
    artifact = OciArtifact(config_sha, config_bytes, found)
    if artifact.layer(MANIFEST) is None or artifact.layer(SUMS) is None:
        raise InputError(
            f"{place} is a model artifact, but no boardfit bundle: it has no {MANIFEST}",
            next_step="fetch its model file with modctl or oras, then edge build FILE.gguf",
        )
    return artifact


def _parse_json(data: bytes, place: str) -> dict[str, Any]:
    try:
        document = json.loads(data, object_pairs_hook=refuse_duplicates)
    except (ValueError, RecursionError) as error:
        raise InputError(f"{place}: not valid JSON: {error}") from None
    if not isinstance(document, dict):
        raise InputError(f"{place}: expected a JSON object")
    return document


def _descriptor(entry: Any, place: str, what: str) -> tuple[str, int]:
    digest, size = entry.get("digest"), entry.get("size")
    if not isinstance(digest, str) or not _DIGEST.fullmatch(digest):
        raise InputError(f"{place}: {what} has no sha256 digest: {digest!r:.100}")
    if type(size) is not int or not 0 <= size <= MAX_TOTAL_BYTES:
        raise UnsafeInputError(f"{place}: {what} has an impossible size: {size!r:.40}")
    if entry.get("urls"):
        raise UnsafeInputError(f"{place}: {what} is to be fetched from somewhere else")
    return digest.removeprefix("sha256:"), size


def _layer(entry: Any, place: str) -> OciLayer:
    if not isinstance(entry, dict):
        raise InputError(f"{place}: a layer is not an object")
    sha256, n_bytes = _descriptor(entry, place, "a layer")
    kind, notes = entry.get("mediaType"), entry.get("annotations")
    if kind not in RAW_TYPES:
        raise InputError(
            f"{place}: a layer of type {printable(str(kind), 80)!r}; only plain files are taken "
            f"({_PREFIX}….raw)",
            next_step="an archive inside would have to be unpacked first; edge push makes none",
        )
    notes = notes if isinstance(notes, dict) else {}
    path, title = notes.get(FILEPATH), notes.get(TITLE)
    if not isinstance(path, str):
        raise InputError(f"{place}: a layer has no annotation {FILEPATH}")
    if isinstance(title, str) and title != path:
        raise UnsafeInputError(
            f"{place}: one layer with two names: {printable(path, 80)!r}, {printable(title, 80)!r}"
        )
    if path not in _OWN:
        check_name(path)
    if n_bytes == 0 and sha256 != hashlib.sha256(b"").hexdigest():
        raise IntegrityError(f"{place}: {path} is empty by its size and not by its digest")
    return OciLayer(path, sha256, n_bytes, kind)


def check_paths(layers: tuple[OciLayer, ...], place: str) -> None:
    """No path twice (nor in other capitals: cards and Macs take them for the same), and none that
    is another's folder. One content has one size.
    """
    seen: dict[str, str] = {}
    sizes: dict[str, int] = {}
    for layer in layers:
        key = layer.path.casefold()
        if key in seen:
            raise UnsafeInputError(f"{place}: two layers are {printable(layer.path, 80)!r}")
        seen[key] = layer.path
        if sizes.setdefault(layer.sha256, layer.n_bytes) != layer.n_bytes:
            raise UnsafeInputError(f"{place}: {layer.path}: one digest with two sizes")
    for key, path in seen.items():
        parts = key.split("/")
        if any("/".join(parts[:i]) in seen for i in range(1, len(parts))):
            raise UnsafeInputError(f"{place}: a folder of {printable(path, 80)!r} is also a file")


def check_config(artifact: OciArtifact, data: bytes, place: str) -> None:
    """The config repeats the layers' digests; one that differs was made for another manifest."""
    document = _parse_json(data, f"{place}: config")
    modelfs = document.get("modelfs")
    expected = [f"sha256:{layer.sha256}" for layer in artifact.layers]
    if not isinstance(modelfs, dict) or modelfs.get("diffIds") != expected:
        raise IntegrityError(
            f"{place}: config and manifest do not list the same layers",
            next_step="push the bundle again",
        )


def check_against_bundle(artifact: OciArtifact, bundle: Bundle, place: str) -> None:
    """The layers are the bundle's files, with its sizes and hashes, and nothing else. Raises
    IntegrityError before anything large is fetched.
    """
    files = {file.name: (file.sha256, file.n_bytes) for file in bundle.files}
    layers = {x.path: (x.sha256, x.n_bytes) for x in artifact.layers if x.path not in _OWN}
    if different := sorted(set(files.items()) ^ set(layers.items())):
        raise IntegrityError(
            f"{place}: {different[0][0]} is not the same in the artifact and in the bundle's own "
            "manifest",
            next_step="push the bundle again",
        )
