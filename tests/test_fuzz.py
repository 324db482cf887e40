"""Every reader of a stranger's bytes under fire: an answer or one of our errors, and at once.

BOARDFIT_TEST_MUTATIONS is the number of damaged inputs for all readers together,
BOARDFIT_TEST_COMMANDS that of whole commands.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import os
import random
import shutil
import struct
import time
import traceback
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from boardfit.converters.imatrix.files import read_imatrix
from boardfit.converters.oci.artifact import parse_artifact
from boardfit.converters.oci.registry import parse_reference
from boardfit.converters.source.resolve import parse_name
from boardfit.device_profiles.profile import ProfileError
from boardfit.device_profiles.toml import build_profile, parse_sources, parse_toml
from boardfit.edge.bench.importers import read_any
from boardfit.edge.bench.store import KIND, SCHEMA
from boardfit.edge.bundle.bundle import open_bundle, pack_bundle, parse_manifest
from boardfit.edge.bundle.command import describe
from boardfit.edge.bundle.tar import read_entries
from boardfit.edge.cli import main
from boardfit.edge.engines.kv_state import MAGIC, read_state_header
from boardfit.edge.errors import EdgeError
from boardfit.edge.files import gguf, safetensors
from boardfit.edge.files.onnx import read_onnx
from boardfit.edge.flash.answers import parse_entries, parse_free_bytes
from boardfit.edge.flash.board import DirectoryBoard
from boardfit.edge.flash.checks import parse_facts
from boardfit.edge.flash.flash import FlashOptions, flash
from boardfit.edge.flash.fleet import read_inventory
from boardfit.edge.flash.session import Done
from boardfit.edge.flash.target import parse_flash_target
from boardfit.edge.probe import machine
from boardfit.edge.probe.system import parse_dump
from boardfit.edge.report.figures import group_runs
from boardfit.edge.report.kinds import run_lines
from boardfit.edge.report.verify import verify_run
from boardfit.edge.slots.health import Health, parse_health
from boardfit.edge.slots.layout import SlotState, parse_pointer, parse_state
from boardfit.edge.tasks.task import parse_task
from boardfit.edge.template.render import kept_worker
from boardfit.edge.template.render import render as render_template
from boardfit.edge.terminal.progress import Reporter
from boardfit.edge.trust.board_rules import BoardRules, Floor, parse_rules
from boardfit.edge.trust.bundle_signature import NAMESPACE
from boardfit.edge.trust.pins import parse_trusted_keys
from boardfit.edge.trust.ssh_formats import (
    PublicKey,
    Signature,
    parse_public_key,
    parse_signatures,
)
from tests.edge.engines import tiny_gguf
from tests.edge.engines.tiny_hf import write_llama
from tests.edge.files import mutate, seeds, wire
from tests.edge.flash.cargo import PLAN, make_bundle
from tests.edge.report.test_hostile_results import clean

N_MUTATIONS = int(os.environ.get("BOARDFIT_TEST_MUTATIONS", 100_000))
N_QUICK = 60
#: A pause of this machine is no fault. What is quadratic takes minutes.
SLOWEST_S = 5.0
HERE = Path(__file__).parent
SHA = "ab" * 32

Seeds = list[bytes]


def fixture(name: str) -> bytes:
    return (HERE / "edge" / name).read_bytes()


def manifest() -> bytes:
    entries = {
        name: {"role": role, "n_bytes": 5, "sha256": SHA}
        for name, role in (("model.gguf", "model"), ("a.whl", "wheel"), ("LICENSE", "license"))
    }
    return json.dumps(
        {
            "kind": "boardfit-bundle", "schema": 1, "model": {"name": "x", "arch": "llama"},
            "recipe": {"id": "q4_0"}, "plan": PLAN.to_dict(), "files": entries, "release": 3,
            "quality": {"texts": [{"name": "a", "kld_mean": 0.1, "top1_agreement": 0.9}]},
            "notes": ["one"], "board": {"machine": "aarch64", "glibc": "2.36", "python": "3.11"},
        }
    ).encode()  # fmt: skip


def oci_manifest() -> bytes:
    layers = [
        {
            "mediaType": "application/vnd.cncf.model.weight.v1.raw", "digest": f"sha256:{SHA}",
            "size": 5, "annotations": {"org.cncf.model.filepath": name},
        }
        for name in ("manifest.json", "SHA256SUMS", "model.gguf")
    ]  # fmt: skip
    kind = "application/vnd.cncf.model.config.v1+json"
    config = {"mediaType": kind, "digest": f"sha256:{SHA}", "size": 5}
    return json.dumps({"schemaVersion": 2, "config": config, "layers": layers}).encode()


def tar() -> bytes:
    import tarfile

    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.USTAR_FORMAT) as archive:
        for name in ("bundle/manifest.json", "bundle/model.gguf"):
            info = tarfile.TarInfo(name)
            info.size = 600
            archive.addfile(info, io.BytesIO(bytes(600)))
    return out.getvalue()


def kv_state() -> bytes:
    footer = json.dumps({"mac": SHA, "n_tokens": 3, "state_bytes": 40}, sort_keys=True).encode()
    return bytes(40) + struct.pack("<3i", 1, 2, 3) + footer + struct.pack("<I", len(footer)) + MAGIC


def dump() -> bytes:
    parts = {
        "/proc/cpuinfo": "probe/fixtures/cpuinfo-raspberry-pi-5.txt",
        "/proc/meminfo": "probe/fixtures/meminfo-raspberry-pi-3.txt",
    }
    texts = [b"abcdefgh file %s\n%s\n" % (k.encode(), fixture(v)) for k, v in parts.items()]
    nodes = b"abcdefgh file /sys/devices/system/cpu/possible\n0-3\n\n"
    return b"".join(texts) + nodes + b"abcdefgh output uname -m\naarch64\n\nabcdefgh end\n"


def read_dump(data: bytes) -> None:
    machine.read_report(parse_dump(data.decode("utf-8", "replace"), "abcdefgh"))


def read_board_file(data: bytes) -> None:
    text = data.decode("utf-8", "replace")
    build_profile(parse_toml(text, "x.toml"), "x.toml", parse_sources(text))


def show_results(path: Path) -> None:
    for run in group_runs(read_any(path).results.records):
        assert not any("\x1b" in line for line in run_lines(run))
        verify_run(run)


def show_manifest(data: bytes) -> None:
    assert not any("\x1b" in line for line in describe(parse_manifest(data, Path("bundle"))))


def render(data: bytes) -> None:
    messages = [{"role": r, "content": "Hi"} for r in ("system", "user", "assistant", "user")]
    text = data.decode("utf-8", "replace")
    render_template(text, messages, bos_token="<s>", eos_token="", max_seconds=1.0)


def results() -> Seeds:
    return [
        "\n".join(json.dumps({"kind": KIND, "schema": SCHEMA, **record}) for record in run).encode()
        for run in clean()
    ]


def as_text(parse: Callable[[str], object]) -> Callable[[bytes], object]:
    return lambda data: parse(data.decode("utf-8", "replace"))


TEMPLATE = (
    b"{%- for m in messages %}{% if loop.first and m.role != 'system' %}{{ bos_token }}{% endif %}"
    b"<|{{ m['role'] }}|>{{ m.content | trim }}{{ '\\n' * 2 }}{% endfor %}{% set ns = "
    b"namespace(a=[1, 2] + [3]) %}{% if add_generation_prompt %}{{ ns.a | join(',') }}{% endif %}"
)
# RFC 8032, section 7.1, the first test.
KEY = PublicKey(
    bytes.fromhex("d75a980182b10ab7d54bfed3c964073a0ee172f3daa62325af021a68f707511a"), "one"
)
SIGNATURE = Signature(KEY, NAMESPACE, "sha512", bytes(64)).to_armor().encode()
RULES = BoardRules(("raspberry-pi-5-8gb",), {"x": Floor(3, (SHA,))}, None).to_bytes()
STATE = SlotState((SHA,)).with_release(SHA, name="x", health=Health().to_dict()).to_bytes()
HEALTH = json.dumps(Health(text="a", n_out=3, load_s=1.5, decode_tps=9.0).to_dict()).encode()
INVENTORY = b"""parallel = 4
max_failures = 1
[boards.kitchen]
target = "ssh://pi@kitchen:22/opt/boardfit"
canary = true
[boards.b]
target = "adb://XYZ/data/local/tmp/boardfit"
"""
TASK = b"""title = "Echo"
message = "Say: {text}"
prompt = {low = 1, typical = 2, high = 3}
answer = {low = 4, typical = 5, high = 6}
[budget]
within = "2s"
"""
BOARDS = [
    path.read_bytes() for path in sorted((HERE.parent / "device_profiles/boards").glob("n1*.toml"))
]
LISTING = f"41ed 2 9 /r\n81a4 1 5 /r/state.json\n41ed 2 9 /r/releases/{SHA}\n.\n".encode()
FACTS = b"machine aarch64\nbits 64\nglibc glibc 2.36\npython 3.11\nexec yes\n"
ONNX = wire.model(
    wire.value_info(11, "image", 1, ["batch", 3, 8]),
    wire.node("Conv", "c1", wire.attribute("group", 2)),
)
IMATRIX = struct.pack("<ii", 1, 1) + b"b" + struct.pack("<iifii", 1, 1, 3.0, 7, 5) + b"a.txt"
RESULTS = [fixture(f"report/fixtures/{name}") for name in (
    "llama-bench.json", "litert-lm-benchmark.txt", "onnxruntime-genai.json",
    "onnxruntime-genai.csv", "mlperf_log_summary.txt", "ollama.json", "executorch.txt",
)]  # fmt: skip

#: Name → reader of bytes, seeds, ways to damage them.
IN_MEMORY: dict[str, tuple[Callable[[bytes], object], Seeds, tuple[Any, ...]]] = {
    "gguf": (
        lambda data: gguf.parse_header(data, file_size=len(data), name="x", arrays="full"),
        [seeds.model(), seeds.vocabulary(), seeds.bomb()], mutate.GGUF,
    ),
    "safetensors": (
        lambda data: safetensors.parse_header(data, file_size=len(data), name="x"),
        [seeds.checkpoint()], mutate.SAFETENSORS,
    ),
    "manifest": (show_manifest, [manifest()], mutate.JSON),
    "tar": (
        lambda data: list(read_entries(io.BytesIO(data), len(data), "x", 100)),
        [tar()], mutate.BLIND,
    ),
    "signatures": (parse_signatures, [SIGNATURE, SIGNATURE * 2], mutate.TEXT),
    "public key": (as_text(parse_public_key), [KEY.line.encode()], mutate.TEXT),
    "trusted keys": (
        lambda data: parse_trusted_keys(data, "there"), [f"# a\n{KEY.line}\n".encode()], mutate.TEXT
    ),
    "board rules": (lambda data: parse_rules(data, "there"), [RULES], mutate.JSON),
    "slots state": (parse_state, [STATE], mutate.JSON),
    "health": (lambda data: parse_health(Done(0, data, "").last_record()), [HEALTH], mutate.JSON),
    "pointer": (as_text(parse_pointer), [f"releases/{SHA}".encode()], mutate.TEXT),
    "listing": (as_text(lambda t: parse_entries(t, "/r", "there")), [LISTING], mutate.TEXT),
    "free space": (as_text(lambda t: parse_free_bytes(t, "b")), [b"10 4096\n"], mutate.TEXT),
    "facts": (as_text(parse_facts), [FACTS], mutate.TEXT),
    "probe": (read_dump, [dump()], mutate.TEXT),
    "oci manifest": (lambda data: parse_artifact(data, "there"), [oci_manifest()], mutate.JSON),
    "oci reference": (
        as_text(parse_reference), [b"host:5000/a/b:tag", f"ghcr.io/a@sha256:{SHA}".encode()],
        mutate.TEXT,
    ),
    "model name": (
        as_text(parse_name), [b"hf.co/owner/name:Q4_K_M", b"qwen3:0.6b",
                              b"https://huggingface.co/a/b/resolve/main/c.gguf?x=1"], mutate.TEXT,
    ),
    "target": (
        as_text(parse_flash_target), [b"ssh://pi@host:22/~/x%20y", b"adb://S/a", b"image:a.xz#2"],
        mutate.TEXT,
    ),
    "task": (lambda data: parse_task("x", data), [TASK], mutate.TEXT),
    "board file": (read_board_file, BOARDS, mutate.TEXT),
    "template": (render, [TEMPLATE], mutate.TEXT),
}  # fmt: skip
#: The same for readers of files.
IN_FILES: dict[str, tuple[Callable[[Path], object], Seeds, tuple[Any, ...]]] = {
    "onnx": (read_onnx, [ONNX], mutate.BLIND),
    "kv state": (lambda path: read_state_header(path, 100), [kv_state()], mutate.SAFETENSORS[:-1]),
    "inventory": (read_inventory, [INVENTORY], mutate.TEXT),
    "imatrix": (read_imatrix, [IMATRIX], mutate.BLIND),
    "results": (show_results, results(), mutate.JSON),
    "other tools": (show_results, RESULTS, mutate.JSON),
}


def attack(
    read: Callable[[bytes], object], files: Seeds, ways: tuple[Any, ...], n: int, seed: int = 0
) -> tuple[int, list[str]]:
    """Read `n` damaged inputs; returns how many were accepted, and the faults."""
    chance, accepted, faults = random.Random(seed), 0, dict[str, str]()
    for index in range(n):
        data = mutate.mutated(chance, chance.choice(files), ways) if index else files[0]
        began_s = time.process_time()
        try:
            read(data)
            accepted += 1
        except (EdgeError, ProfileError) as error:
            shown = f"{error} {getattr(error, 'next_step', '')}"
            if not shown.replace("\n", "").isprintable():
                faults.setdefault("unprintable", f"{shown!r:.200} {data!r:.300}")
        except Exception as error:
            place = traceback.extract_tb(error.__traceback__)[-1]
            key = f"{type(error).__name__} {Path(place.filename).name}:{place.lineno}"
            faults.setdefault(key, f"{error!r:.200} {data!r:.300}")
        if time.process_time() - began_s > SLOWEST_S:
            faults.setdefault("slow", f"{data!r:.300}")
    return accepted, [f"{key}: {text}" for key, text in faults.items()]


def reader_in_memory(read: Callable[[Path], object], folder: Path) -> Callable[[bytes], object]:
    path = folder / "x"

    def read_bytes(data: bytes) -> object:
        path.write_bytes(data)
        return read(path)

    return read_bytes


@pytest.mark.parametrize("name", [*IN_MEMORY, *IN_FILES])
@pytest.mark.parametrize("n", [N_QUICK, pytest.param(N_MUTATIONS, marks=pytest.mark.slow)])
def test_damaged_inputs_are_read_or_refused(name: str, n: int, tmp_path: Path) -> None:
    if n != N_QUICK:
        n = n // (len(IN_MEMORY) + len(IN_FILES))
    if name in IN_MEMORY:
        with kept_worker() if name == "template" else nullcontext():
            accepted, faults = attack(*IN_MEMORY[name], n)
    else:
        read, files, ways = IN_FILES[name]
        accepted, faults = attack(reader_in_memory(read, tmp_path), files, ways, n)
    assert not faults, "\n".join(faults)
    # The first input is whole. With none refused, the damage was none.
    assert 0 < accepted < n or name in ("slots state", "pointer", "facts")


# ---- whole commands ------------------------------------------------------------------------------


def tiny_checkpoint(folder: Path) -> Path:
    tensors = tiny_gguf.llama_tensors(np.random.default_rng(1), 64, 1, 96)
    narrow = {name: tensor.astype(np.float32) for name, tensor in tensors.items()}
    return write_llama(folder, narrow, n_ctx=256)


def seal_again(bundle: Path) -> None:
    """Make SHA256SUMS that of the damaged manifest, so that the manifest itself is looked at."""
    text = (bundle / "manifest.json").read_bytes()
    entries = json.loads(text)["files"].items()
    lines = [f"{entry['sha256']}  {name}" for name, entry in entries]
    lines.append(f"{hashlib.sha256(text).hexdigest()}  manifest.json")
    (bundle / "SHA256SUMS").write_text("\n".join(lines) + "\n")


def materials(folder: Path) -> list[tuple[list[str], Path, tuple[Any, ...]]]:
    """Commands, the file that each reads and that is damaged before, and the ways to damage it."""
    bundle = make_bundle(folder / "bundle", {"model.gguf": b"model", "LICENSE": b"mine"})
    root, checkpoint = folder / "root", tiny_checkpoint(folder / "checkpoint")
    flash(open_bundle(bundle), DirectoryBoard(root), FlashOptions(gate=False), Reporter())
    files = {
        "key.pub": KEY.line.encode(), "r.jsonl": results()[0], "net.onnx": ONNX,
    }  # fmt: skip
    for name, data in files.items():
        (folder / name).write_bytes(data)
    tiny_gguf.random_llama(folder / "model.gguf")
    pack_bundle(bundle, folder / "x.tar")
    at = {name: str(folder / name) for name in (*files, "model.gguf", "x.tar")}
    (root / "board.json").write_bytes(RULES)
    (root / "trusted_keys").write_text(f"{KEY.line}\n")
    device = ["--device", "raspberry-pi-5-8gb"]
    found: list[tuple[list[str], Path, tuple[Any, ...]]] = [
        (["bundle", "show", str(bundle)], bundle / "manifest.json", mutate.JSON),
        (["bundle", "show", "--json", str(bundle)], bundle / "manifest.json", mutate.JSON),
        (["bundle", "verify", str(bundle)], bundle / "manifest.json", mutate.JSON),
        (["report", at["r.jsonl"]], folder / "r.jsonl", mutate.JSON),
        (["report", at["r.jsonl"], "--verify"], folder / "r.jsonl", mutate.JSON),
        (["compare", at["r.jsonl"], at["r.jsonl"]], folder / "r.jsonl", mutate.JSON),
        (["key", "show", at["key.pub"]], folder / "key.pub", mutate.TEXT),
        (["key", "list", f"dir:{root}"], root / "board.json", mutate.JSON),
        (["key", "list", f"dir:{root}"], root / "trusted_keys", mutate.TEXT),
        (["slots", "list", f"dir:{root}"], root / "state.json", mutate.JSON),
        (["bundle", "unpack", at["x.tar"], "-o", f"{folder}/out"], folder / "x.tar", mutate.BLIND),
        (["plan", at["model.gguf"], *device], folder / "model.gguf", mutate.GGUF),
        (["plan", str(checkpoint), *device], checkpoint / "model.safetensors", mutate.SAFETENSORS),
    ]  # fmt: skip
    for path in sorted(checkpoint.glob("*.json")):
        found.append((["plan", str(checkpoint), *device], path, mutate.JSON))
    return found


def run_command(arguments: list[str]) -> str | None:
    """Run a command in this process; what is wrong with its end, or None."""
    out, err = io.StringIO(), io.StringIO()
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            main(arguments)
    except SystemExit as end:
        text = out.getvalue() + err.getvalue()
        if end.code not in range(9) or "bug of boardfit" in text or "Traceback" in text:
            return f"{end.code}: {text[-400:]}"
        return "escapes" if "\x1b" in text else None
    return "it did not exit"


N_COMMANDS = int(os.environ.get("BOARDFIT_TEST_COMMANDS", 300))


@pytest.mark.parametrize("n", [20, pytest.param(N_COMMANDS, marks=pytest.mark.slow)])
def test_no_command_ends_in_a_bug(n: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("BOARDFIT_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("BOARDFIT_TRACEBACK", raising=False)
    chance, faults = random.Random(n), dict[str, str]()
    commands = [
        (arguments, path, ways, path.read_bytes()) for arguments, path, ways in materials(tmp_path)
    ]
    for index in range(n):
        arguments, path, ways, whole = commands[index % len(commands)]
        # Headers lie in front.
        data = mutate.mutated(chance, whole[:10_000], ways) + whole[10_000:]
        shutil.rmtree(tmp_path / "out", ignore_errors=True)
        path.unlink()
        path.write_bytes(data)
        if path.name == "manifest.json":
            with contextlib.suppress(Exception):
                seal_again(path.parent)
        if fault := run_command(arguments):
            faults.setdefault(f"{arguments[:2]} {fault}"[:300], f"{data!r:.400}")
        path.unlink()
        path.write_bytes(whole)
    assert not faults, "\n".join(f"{key}: {data}" for key, data in faults.items())
