"""A board that lies ends a flash in a sentence, before its deadline: no hang, no bug, no escape.

The program `ssh` of these tests runs the command on this machine, and then lies about the answer.
"""

from __future__ import annotations

import hashlib
import json
import os
import random
import stat
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

import boardfit.edge.flash.session as session
import boardfit.edge.flash.shell_files as shell_files
import boardfit.edge.flash.ssh as ssh
from boardfit.edge.bench.store import sealed
from boardfit.edge.bundle.bundle import open_bundle, seal_bundle
from boardfit.edge.bundle.sign import sign_bundle
from boardfit.edge.errors import DeviceError, InputError
from boardfit.edge.flash.answers import (
    parse_content,
    parse_counts,
    parse_digests,
    parse_entries,
    parse_flag,
    parse_folder,
    parse_free_bytes,
    parse_program,
    parse_target,
)
from boardfit.edge.flash.flash import FlashOptions, flash
from boardfit.edge.flash.gate import engine_bytes, read_health
from boardfit.edge.flash.session import Done
from boardfit.edge.flash.ssh import SshBoard
from boardfit.edge.flash.target import parse_flash_target
from boardfit.edge.flash.trust import SignaturePolicy, read_verdict
from boardfit.edge.slots.health import Health
from boardfit.edge.terminal.progress import Reporter
from boardfit.edge.trust.release import new_release
from boardfit.edge.trust.signing import load_signing_key, new_key
from tests.edge.flash.cargo import PLAN

# Runs the command of `ssh … -- host COMMAND`. A lie is a Python expression over `out` (bytes) and
# `code`, applied to the answers that its number selects; or a name of what it does instead.
LIAR = r"""#!{python}
import os, random, re, subprocess, sys, time
command, folder = sys.argv[-1], {folder!r}
seed, share, lies = {seed!r}, {share!r}, {lies!r}
if "-G" in sys.argv or "-O" in sys.argv:
    sys.exit(0)
with open(os.path.join(folder, "asked"), "ab") as file:
    n = file.tell() + 1
    file.write(b".")
chance = random.Random(f"{{seed}} {{n}}")

def endless(stream):
    try:
        while True:
            os.write(stream, b"x" * 65536)
    except OSError:
        sys.exit(255)

def note():
    with open(os.path.join(folder, "lied"), "a") as file:
        file.write(".")

def act(lie, out, err, code):
    if lie in ("silent", "out", "err", "end"):
        note()
    if lie == "silent":
        time.sleep(600)
    if lie == "out":
        endless(1)
    if lie == "err":
        endless(2)
    if lie == "end":
        os._exit(chance.choice([0, 1, 137, 255]))
    if lie == "empty":
        out = b""
    if lie == "fewer":
        out = b"\n".join(out.split(b"\n")[: chance.randrange(1 + out.count(b"\n"))])
    if lie == "garbage":
        out = chance.randbytes(chance.randrange(200))
    if lie == "numbers":
        out = re.sub(rb"[0-9]+", lambda m: chance.choice([b"-1", b"9" * 5000, b"x", b"1e9"]), out)
    if lie == "bytes":
        data = bytearray(out)
        for _ in range(chance.randrange(1, 9)):
            if data:
                data[chance.randrange(len(data))] = chance.randrange(256)
        out = bytes(data)
    if lie == "escape":
        out, err = b"\x1b[2J\x1b]0;x\x07" + out, b"\x1b[31mboo\x1b]0;x\x07\n"
        code = 1
    if lie == "rc":
        code, err = chance.randrange(1, 256), b"something else\n"
    return out, err, code

if command.startswith("exec sh -c 'exec sh'"):
    script = sys.stdin.buffer.read()
    done = subprocess.run(["sh", "-c", script], capture_output=True, cwd=folder)
    out, err, code = done.stdout, done.stderr, done.returncode
    # Sooner or later each of them lies.
    if lies and n > {first} and (n > {first} + 10 or chance.random() < share):
        was = out, code
        out, err, code = act(chance.choice(lies), out, err, code)
        if (out, code) != was:
            note()
    os.write(2, err)
    while out:
        out = out[os.write(1, out) :]
    sys.exit(code)
for part, lie in {elsewhere!r}.items():
    if part in command:
        act(lie, b"", b"", 0)
os.execvp("sh", ["sh", "-c", command])
"""


def lying_ssh(
    folder: Path,
    lies: list[str],
    *,
    share: float = 1.0,
    seed: int = 0,
    first: int = 0,
    elsewhere: dict[str, str] | None = None,
) -> None:
    """Write the program; `elsewhere` maps a part of another command to a lie."""
    path = folder / "bin/ssh"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(
        LIAR.format(
            python=sys.executable, folder=str(folder), seed=seed, share=share, lies=lies,
            first=first, elsewhere=elsewhere or {},
        )
    )  # fmt: skip
    path.chmod(path.stat().st_mode | stat.S_IXUSR)


UNSIGNED = SignaturePolicy()


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """Deadlines of two seconds, and the liar's folder first on the PATH."""
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}{os.pathsep}{os.environ['PATH']}")
    for place, name in ((ssh, "_LOGIN_S"), (shell_files, "_LOCK_S"), (shell_files, "STALL_S")):
        monkeypatch.setattr(place, name, 2)
    monkeypatch.setattr(shell_files, "_END_S", 1)
    run = session.Channel.run

    def in_short(self: session.Channel, script: str, *, timeout_s: float = 60) -> session.Done:
        return run(self, script, timeout_s=2)

    monkeypatch.setattr(session.Channel, "run", in_short)
    return tmp_path


def try_flash(
    folder: Path, bundle: Path, *, gate: bool = False, policy: SignaturePolicy = UNSIGNED
) -> None:
    target = parse_flash_target(f"ssh://board{folder}/root")
    board = SshBoard(target, via="stream")
    try:
        options = FlashOptions(gate=gate, signature=policy)
        flash(open_bundle(bundle), board, options, Reporter())
    finally:
        board.close()


def healthy_edge(folder: Path) -> None:
    """Put a program `edge` on the board that calls every bundle healthy."""
    report = sealed(Health(text="Hello", n_out=9, load_s=0.1, decode_tps=90.0).to_dict())
    path = folder / "bin/edge"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(
        f"#!/bin/sh\n[ $1 = slots ] || exit 2\ncat <<'END'\n{json.dumps(report)}\nEND\n"
    )
    path.chmod(0o755)


@pytest.mark.parametrize(
    ("lies", "elsewhere"),
    [
        (["silent"], {}),
        (["out"], {}),
        (["err"], {}),
        ([], {"echo held": "silent"}),
        ([], {"echo held": "out"}),
        ([], {"echo held": "err"}),
        ([], {"exec dd": "silent"}),
        ([], {"exec dd": "err"}),
        ([], {"exit 0": "silent"}),
        ([], {"exit 0": "err"}),
    ],
)
def test_a_board_that_holds_or_fills_is_left(
    quick: Path, cargo: tuple[Path, Path], lies: list[str], elsewhere: dict[str, str]
) -> None:
    lying_ssh(quick, lies, share=float(bool(lies)), first=3, elsewhere=elsewhere)
    began_s = time.monotonic()
    with pytest.raises(DeviceError) as caught:
        try_flash(quick, cargo[0])
    assert time.monotonic() - began_s < 20 and str(caught.value).isprintable()


def test_a_board_that_does_not_lie_is_flashed(quick: Path, cargo: tuple[Path, Path]) -> None:
    lying_ssh(quick, [], share=0)
    try_flash(quick, cargo[0])
    assert (quick / "root/current").exists()


RANDOM = ["end", "empty", "fewer", "garbage", "numbers", "bytes", "escape", "rc", "out"]


@pytest.mark.parametrize("seed", range(int(os.environ.get("BOARDFIT_LIARS", "4"))))
def test_random_lies_end_in_a_sentence(quick: Path, cargo: tuple[Path, Path], seed: int) -> None:
    """A lie is an answer that differs from what the board's programs printed.

    Every second board has a release already, and accepts only what its key has signed.
    """
    chance, policy = random.Random(seed), SignaturePolicy(required=bool(seed % 2))
    healthy_edge(quick)
    if policy.required:
        new_key(quick / "key", None, "me")
        for number, bundle in enumerate(reversed(cargo), 1):
            sign_bundle(bundle, load_signing_key(quick / "key"), new_release(number))
        lying_ssh(quick, [], share=0)
        try_flash(quick, cargo[1], gate=True, policy=policy)
    lying_ssh(
        quick, chance.sample(RANDOM, chance.randint(1, 3)), share=chance.choice([0.1, 0.3, 1.0]),
        seed=seed, first=chance.randrange(40),
    )  # fmt: skip
    began_s = time.monotonic()
    with pytest.raises(DeviceError) as caught:
        try_flash(quick, cargo[0], gate=True, policy=policy)
    assert str(caught.value).isprintable() and (caught.value.next_step or "").isprintable()
    assert time.monotonic() - began_s < 60 and (quick / "lied").exists()
    # What is current is whole, whatever was said about it.
    if (current := (quick / "root/current")).exists():
        open_bundle(current.resolve() / "bundle", verify=True)


@pytest.mark.parametrize(
    "parse",
    [
        lambda text: parse_digests(text, 2, "b"),
        lambda text: parse_counts(text, 2, "b"),
        lambda text: parse_free_bytes(text, "b"),
        lambda text: parse_folder(text, "b"),
        lambda text: parse_entries(text, "/r", "b"),
        lambda text: parse_target(text, "b"),
        lambda text: parse_program(text, "b"),
        lambda text: parse_flag(text, "b"),
        lambda text: parse_content(text.encode(), 100, "b"),
    ],
)
def test_an_answer_is_parsed_or_refused(parse: Callable[[str], object]) -> None:
    chance = random.Random(1)
    pieces = ["", "-", "ab" * 32, "1", "9" * 5000, "²", "-1", "x%", "%", "/a", "81a4 1 5 /r/x",
              "\n", " ", "\x1b[2J", "81a4 1 " + "9" * 5000 + " /r/y", "\r", "\u2028"]  # fmt: skip
    for _ in range(2000):
        text = "".join(chance.choice(pieces) for _ in range(chance.randrange(6)))
        try:
            parse(text)
        except DeviceError as error:
            assert str(error).isprintable()


def test_answers() -> None:
    sha = "ab" * 32
    assert parse_digests(f"{sha}\n-\n", 2, "b") == [sha, None]
    assert parse_counts("1\n22\n", 2, "b") == [1, 22]
    assert parse_free_bytes("10 4096\n", "b") == 40960
    df = "Filesystem 1024-blocks Used Available Capacity Mounted\n/dev/x 100 50 50 50% /\n"
    assert parse_free_bytes(df, "b") == 51200
    assert parse_folder("/home/pi\n", "b") == "/home/pi"
    found = parse_entries("41ed 2 9 /r\n81a4 2 5 /r/a b\na1ff 1 3 /r/l\n.\n", "/r", "b")
    assert [(n, e.kind, e.n_bytes, e.n_names) for n, e in found.items()] == [
        ("a b", "file", 5, 2), ("l", "link", 0, 1),
    ]  # fmt: skip
    assert parse_entries(".\n", "/r", "b") == {}
    assert parse_target("releases/x\n.\n", "b") == "releases/x"
    assert parse_target(".\n", "b") is None and parse_program("-\n", "b") is None
    assert parse_program("/usr/bin/edge\n", "b") == "/usr/bin/edge"
    content = hashlib.sha256(b"ab").hexdigest().encode() + b"\nab"
    assert parse_content(content, 2, "b") == b"ab" and parse_content(content, 1, "b") is None
    assert parse_content(b"-\n", 9, "b") is None


@pytest.mark.parametrize(
    "text",
    [
        "", ".", "x\n.\n", "41ed 2 9 /r\n", "81a4 1 5 /r/a\n.\n", "41ed 2 9 /r\nx\n.\n",
        "41ed 2 9 /r\n81a4 1 5 /s/a\n.\n",
    ],
)  # fmt: skip
def test_a_listing_that_is_none_is_refused(text: str) -> None:
    with pytest.raises(DeviceError, match="was asked for"):
        parse_entries(text, "/r", "b")


def test_a_report_and_an_exit_code_that_contradict_each_other_are_refused() -> None:
    health = json.dumps(sealed(Health(text="Hello", n_out=9).to_dict())).encode()
    assert read_health(Done(0, health + b"\n", ""), "b") is not None
    assert read_health(Done(132, b"", ""), "b") is None
    edited = health.replace(b"Hello", b"Jello")
    for rc, out in ((1, health + b"\n"), (0, health), (0, b""), (0, b"{}\n"), (0, edited + b"\n")):
        with pytest.raises(DeviceError, match="broken report"):
            read_health(Done(rc, out, ""), "b")
    accepted = b'{"kind": "boardfit-trust", "ok": true}\n'
    refused = b'{"error": "IntegrityError", "message": "no"}\n'
    assert read_verdict(Done(0, accepted, ""), "b") == ""
    assert read_verdict(Done(7, refused, ""), "b") == "no"
    assert read_verdict(Done(9, b"", ""), "b") is None
    for rc, out in ((1, accepted), (0, refused), (1, refused), (0, b""), (0, b"[1]\n")):
        with pytest.raises(DeviceError, match="whether it accepts"):
            read_verdict(Done(rc, out, ""), "b")


class Asleep(session.Channel):
    """A board that takes no byte."""

    place = "b"

    def argv(self, script: str) -> list[str]:
        return ["sleep", "600"]

    def find_connection_error(self, done: Done) -> None:
        return None


def test_a_transfer_that_stands_still_is_noticed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shell_files, "STALL_S", 0.2)
    (tmp_path / "x").write_bytes(b"x")
    with pytest.raises(DeviceError, match="has taken no byte"):
        shell_files.send_stream(Asleep(), tmp_path / "x", "x", 0, lambda _: None)


@pytest.mark.parametrize("data", [b"", b"no zip", b"PK\5\6" + bytes(9), b"PK\5\6" + b"\xff" * 18])
def test_a_wheel_that_is_no_zip_is_an_input_error(tmp_path: Path, data: bytes) -> None:
    folder = tmp_path / "bundle"
    folder.mkdir()
    (folder / "model.gguf").write_bytes(b"model")
    (folder / "x.whl").write_bytes(data)
    document = {"model": {"name": "x"}, "recipe": {}, "plan": PLAN.to_dict()}
    seal_bundle(folder, document, {"model.gguf": "model", "x.whl": "wheel"}, {})
    with pytest.raises(InputError, match=r"x\.whl is no wheel"):
        engine_bytes(open_bundle(folder))
