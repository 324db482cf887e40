"""One import name: nothing of ours is found, or hidden, under a name that is everybody's."""

from __future__ import annotations

import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
ROOMS = ("edge", "converters", "device_profiles")


@pytest.mark.parametrize("start", ["-m boardfit", "-m boardfit.edge", "script"])
def test_packages_of_the_user_change_nothing(start: str, tmp_path: Path) -> None:
    for name in ROOMS:
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").write_text("raise SystemExit('the user\\'s own')\n")
    begin = [sys.executable, *start.split()]
    if start == "script":
        begin = [str(Path(sys.executable).with_name("boardfit"))]
    plan = ["plan", "sample", "-d", "raspberry-pi-5-8gb"]
    for words, seen in ((["--help"], "rehearse"), (plan, "Raspberry Pi 5")):
        done = subprocess.run(
            [*begin, *words], cwd=tmp_path, env={"PYTHONPATH": str(tmp_path)},
            capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert done.returncode == 0 and seen in done.stdout and not done.stderr


def test_only_our_name_can_be_imported() -> None:
    script = "import importlib.util as u, sys; print([u.find_spec(n) for n in sys.argv[1:]])"
    done = subprocess.run(
        [sys.executable, "-I", "-c", script, *ROOMS], cwd="/", capture_output=True, text=True,
        check=True,
    )  # fmt: skip
    assert done.stdout.strip() == "[None, None, None]"


def files_of_ours() -> set[str]:
    """What must be in every archive, by path."""
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard", "src/boardfit", *ROOMS],
        cwd=ROOT, capture_output=True, text=True, check=True,
    ).stdout.splitlines()  # fmt: skip
    files = {name.removeprefix("src/boardfit/") for name in listed if (ROOT / name).is_file()}
    return {f"boardfit/{name}" for name in files}


def test_archives_hold_every_file_below_one_name(tmp_path: Path) -> None:
    """Three of our folders are links: what packs them must follow."""
    subprocess.run(
        [sys.executable, "-m", "hatchling", "build", "-d", str(tmp_path)],
        cwd=ROOT, capture_output=True, check=True,
    )  # fmt: skip
    with zipfile.ZipFile(next(tmp_path.glob("*.whl"))) as wheel:
        names = {name for name in wheel.namelist() if ".dist-info/" not in name}
    assert names == files_of_ours()
    assert not [name for name in names if name.split("/")[1] in ("lab", "scripts", "tests")]
    with tarfile.open(next(tmp_path.glob("*.tar.gz"))) as sdist:
        sources = {member.name.partition("/src/")[2] for member in sdist if member.isfile()}
    assert sources - {""} == files_of_ours()
