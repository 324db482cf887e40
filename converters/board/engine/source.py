"""The engine's source distribution: fetched once with pip, checked, and copied to be patched.

It lies where `scripts/build_engine` puts it (that script runs before anything is installed and so
shares no code with us; a test holds the two to the same version and hash).
"""

import hashlib
import shutil
import tarfile
from pathlib import Path

from boardfit.edge.disk.verified import cache_directory
from boardfit.edge.errors import EngineMissingError, InputError, IntegrityError
from boardfit.edge.process.child import decode_output, python_argv, run_child
from boardfit.edge.terminal.progress import Say

PACKAGE = "llama_cpp_python"
VERSION = "0.3.36"
SDIST_SHA256 = "832db0699007f1be95a7e41ef12e88926b02ba836461e36a36372db2760c1a2e"

# Nothing in these is compiled; together they are most of the tree.
_NOT_COMPILED = frozenset(("models", "docs", "media", "gguf-py", "tests", ".git", ".github"))


def fetch_sdist(say: Say) -> Path:
    """The source distribution in the cache folder, of the right sha256. Raises EngineMissingError
    when it cannot be fetched, IntegrityError when it is another file.
    """
    downloads = cache_directory() / "downloads"
    sdist = downloads / f"{PACKAGE}-{VERSION}.tar.gz"
    if not sdist.exists():
        say(f"fetching {PACKAGE} {VERSION} (76 MB of source)")
        downloads.mkdir(parents=True, exist_ok=True)
        done = run_child(
            python_argv("pip", "download", "-q", "--no-deps", "--no-binary=:all:",
                        "-d", str(downloads.absolute()), f"{PACKAGE}=={VERSION}")
        )  # fmt: skip
        if done.returncode or not sdist.exists():
            output = decode_output(done.stderr).strip()
            raise EngineMissingError(
                f"pip could not fetch {PACKAGE} {VERSION}: {output[-600:]}",
                next_step=f"put {sdist.name} into {downloads}, or try again with a network",
            )
    digest = hashlib.sha256(sdist.read_bytes()).hexdigest()
    if digest != SDIST_SHA256:
        raise IntegrityError(
            f"{sdist} has sha256 {digest}, expected {SDIST_SHA256}",
            next_step=f"rm {sdist}, then try again",
        )
    return sdist


def unpack_source(sdist: Path, directory: Path) -> Path:
    """Unpack what a build needs of the source distribution into `directory`; returns its root."""
    root = f"{PACKAGE}-{VERSION}"
    shutil.rmtree(directory, ignore_errors=True)
    directory.mkdir(parents=True)

    def select_member(member: tarfile.TarInfo, path: str) -> tarfile.TarInfo | None:
        parts = Path(member.name).parts
        if parts[1:3] == ("vendor", "llama.cpp"):
            if len(parts) > 3 and parts[3] in _NOT_COMPILED:
                return None
        elif len(parts) > 2 and parts[1] not in ("llama_cpp", "vendor"):
            return None
        return tarfile.data_filter(member, path)

    with tarfile.open(sdist) as archive:
        archive.extractall(directory, filter=select_member)
    if not (directory / root / "vendor/llama.cpp/CMakeLists.txt").is_file():
        raise InputError(f"{sdist} is not laid out like the {PACKAGE} that this version knows")
    return directory / root
