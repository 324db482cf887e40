"""What a command in a cage sees, reaches and can write; and the command line for systemd."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import pytest

from boardfit.edge.errors import EngineMissingError
from boardfit.edge.process import cage
from boardfit.edge.process.cage import cage_command
from boardfit.edge.process.child import run_child
from tests.programs import require

LOOK = """
import json, os, socket, sys
def tries(what):
    try: what()
    except OSError as error: return error.strerror
    return "done"
shown, secret, server = sys.argv[1:]
found = {
    "shown": open(shown).read(), "secret": os.path.exists(secret), "env": sorted(os.environ),
    "write": [tries(lambda: open(p, "w")) for p in (shown, "/etc/x", "/usr/x", os.getcwd() + "/x")],
    "scratch": tries(lambda: open("/tmp/x", "w")),
    "network": tries(lambda: socket.create_connection(("127.0.0.1", int(server)), 2)),
    "run": os.listdir("/run"), "processes": sum(n.isdigit() for n in os.listdir("/proc")),
    "capabilities": [l for l in open("/proc/self/status") if l.startswith("CapEff")][0].split()[1],
    "cwd": os.getcwd(),
}
print(json.dumps(found))
"""


@pytest.fixture
def bubblewrap() -> None:
    require("bwrap")
    try:
        cage_command(["true"], [], Path("/"), {})
    except EngineMissingError as error:  # a container that allows no namespaces
        pytest.skip(str(error))


@pytest.mark.usefixtures("bubblewrap")
def test_a_cage_shows_what_was_named_and_nothing_else(tmp_path: Path) -> None:
    import socket

    shown, secret = tmp_path / "shown/model", tmp_path / "id_ed25519"
    shown.parent.mkdir()
    shown.write_text("weights")
    secret.write_text("PRIVATE")
    env = {"PATH": os.environ["PATH"], "LANG": "C.UTF-8"}
    python = [Path(sys.prefix), Path(sys.base_prefix)]
    with socket.create_server(("127.0.0.1", 0)) as server:
        argv = [sys.executable, "-c", LOOK, str(shown), str(secret), str(server.getsockname()[1])]
        caged = cage_command(argv, [shown.parent, *python], tmp_path, env)
        done = run_child(caged.argv, env=env, timeout_s=60)
    found = json.loads(done.stdout or done.stderr)
    assert found["shown"] == "weights" and not found["secret"]
    assert found["write"][:3] == ["Read-only file system"] * 3
    assert found["scratch"] == "done" and not Path("/tmp/x").exists()
    assert found["network"] in ("Connection refused", "Network is unreachable")
    assert found["run"] == [] and found["processes"] <= 3
    assert int(found["capabilities"], 16) == 0 and found["cwd"] == str(tmp_path)
    assert not (tmp_path / "x").exists()
    assert {"PATH", "LANG"} <= set(found["env"]) <= {"PATH", "LANG", "LC_CTYPE", "PWD"}


@pytest.mark.parametrize("has_systemd", [False, True])
def test_without_either_the_error_names_both(
    has_systemd: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    programs = {"systemd-run": "/usr/bin/systemd-run"} if has_systemd else {}
    monkeypatch.setattr(cage, "find_program", programs.get)
    monkeypatch.setattr(cage.os.path, "isdir", lambda path: False)
    with pytest.raises(EngineMissingError, match="bwrap is not installed; systemd") as caught:
        cage_command(["true"], [], Path("/"), {})
    assert "bubblewrap" in str(caught.value.next_step)


@pytest.mark.parametrize("uid", [0, 1000])
def test_a_unit_of_systemd_has_the_restrictions_of_the_services(
    uid: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    programs = {"systemd-run": "/usr/bin/systemd-run"}
    monkeypatch.setattr(cage, "find_program", programs.get)
    monkeypatch.setattr(cage.os.path, "isdir", lambda path: True)
    monkeypatch.setattr(cage.os, "geteuid", lambda: uid)
    shown = [Path("/root/a b/kit"), Path("/opt/kit")]
    caged = cage_command(["edge", "run"], shown, Path("/root/here"), {"A": "b c"})
    words = caged.argv[: caged.argv.index("--")]
    assert caged.argv[len(words) :] == ["--", "edge", "run"]
    for line in cage.SYSTEMD.splitlines():
        assert f"--property={line}" in words or line == "ProtectHome=yes"
    assert "--property=BindReadOnlyPaths='/root/a b/kit'" in words
    assert not any("/opt/kit" in word for word in words)
    assert "--property=TemporaryFileSystem=/root:ro" in words
    assert "--property=TemporaryFileSystem=/root/here:ro" in words
    assert "--setenv=A=b c" in words and "--working-directory=/root/here" in words
    assert ("--user" in words) == ("--property=PrivateUsers=yes" in words) == (uid != 0)
    assert caged.stop is not None and caged.stop[0] == "/usr/bin/systemctl"
