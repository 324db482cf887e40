"""Keys that a place accepts bundles from: `trusted_keys`, one public key per line.

    ROOT/trusted_keys                beside ROOT/releases on a board (`edge key pin`), or in any
                                     other folder above what is opened
    /etc/boardfit/trusted_keys       the whole machine; only its administrator can change it
    $BOARDFIT_TRUSTED_KEYS            one more, for a service or a shell

Beside each may lie `revoked_keys`, with keys that are never accepted, and `board.json`
(`boardfit.edge.trust.board_rules`). Every file that exists must accept a bundle before it is
opened. One that cannot be read, is damaged or is empty accepts nothing. A user who may write ROOT
may remove its file; the machine's own file is for boards where that matters.
"""

import os
import re
from collections.abc import Callable, Sequence
from pathlib import Path

from boardfit.edge.disk.opened_file import OpenedFile
from boardfit.edge.errors import EdgeError, InputError, IntegrityError
from boardfit.edge.trust.board_rules import (
    BOARD_RULES,
    MAX_RULES_BYTES,
    Subject,
    parse_rules,
    shut_rules,
)
from boardfit.edge.trust.bundle_signature import accepting_key
from boardfit.edge.trust.ssh_formats import PublicKey, parse_public_key

TRUSTED_KEYS, REVOKED_KEYS = "trusted_keys", "revoked_keys"
SYSTEM_KEYS = Path("/etc/boardfit/trusted_keys")
VARIABLE = "BOARDFIT_TRUSTED_KEYS"
MAX_KEYS_BYTES = 64 * 1024
MAX_KEYS = 64
_MAX_LINKS = 40  # as the kernel has it
_OCTAL = re.compile(r"\\([0-7]{3})")  # how a table of mounts writes a space


def parse_trusted_keys(data: bytes, place: str) -> tuple[PublicKey, ...]:
    """Keys of a file, each once. Raises IntegrityError for a damaged or an empty one."""
    try:
        # Plain lines only: Unicode knows more separators, in which a key could hide or vanish.
        lines = [line.strip(" \t\r") for line in data.decode("utf-8").split("\n")]
        keys = [parse_public_key(line) for line in lines if line and not line.startswith("#")]
    except (UnicodeDecodeError, InputError) as error:
        raise _shut(place, str(error)) from None
    if not keys or len(keys) > MAX_KEYS:
        raise _shut(place, f"it has {len(keys)} keys, expected 1 to {MAX_KEYS}")
    return tuple(dict.fromkeys(keys))


def format_trusted_keys(keys: Sequence[PublicKey]) -> bytes:
    return _format_keys(
        "Only bundles signed by one of these keys are started here: edge key.", keys
    )


def format_revoked_keys(keys: Sequence[PublicKey]) -> bytes:
    return _format_keys("A signature by one of these keys counts for nothing here: edge key.", keys)


def _format_keys(comment: str, keys: Sequence[PublicKey]) -> bytes:
    return "".join(f"{line}\n" for line in (f"# {comment}", *(k.line for k in keys))).encode()


def key_files(path: Path) -> list[Path]:
    """Return the key files that decide over a bundle or a model file. They lie in a folder above
    it: above the path as given, above every link on the way, and above what is mounted there.
    """
    found = rule_files(path, TRUSTED_KEYS)
    if own := os.environ.get(VARIABLE):
        # Named on purpose: it counts even when it is missing.
        return list(dict.fromkeys([*found, Path(own)]))
    return found


def rule_files(path: Path, name: str) -> list[Path]:
    """The files called `name` that lie where a key file of `path` may lie."""
    folders = [folder for place in list_folders(path) for folder in (place, *place.parents)]
    candidates = [folder / name for folder in dict.fromkeys(folders)]
    candidates.append(SYSTEM_KEYS.with_name(name))
    if (own := os.environ.get(VARIABLE)) and name != TRUSTED_KEYS:
        candidates.append(Path(own).with_name(name))
    return _existing(candidates)


def check_pins(bundle: Path, manifest: bytes, signature: bytes | None) -> list[PublicKey]:
    """The keys by which every key file accepts a bundle with this manifest and signature; empty
    where there are none. Raises IntegrityError when a file does not accept it.
    """
    pinned = key_files(bundle)
    revoked = revoked_keys(bundle) if pinned else ()
    return [
        accepting_key(manifest, signature, _read_keys(path), str(path), revoked) for path in pinned
    ]


def revoked_keys(bundle: Path) -> tuple[PublicKey, ...]:
    """The keys that any list for this bundle revokes. Raises IntegrityError for a damaged one."""
    lists = map(_read_keys, rule_files(bundle, REVOKED_KEYS))
    return tuple(dict.fromkeys(key for keys in lists for key in keys))


def _read_keys(path: Path) -> tuple[PublicKey, ...]:
    return parse_trusted_keys(_read(path, MAX_KEYS_BYTES, _shut), str(path))


def check_rules(bundle: Path, subject: Subject) -> None:
    """Raise IntegrityError where a rules file above a signed bundle does not accept its release."""
    for path in rule_files(bundle, BOARD_RULES):
        data = _read(path, MAX_RULES_BYTES, shut_rules)
        parse_rules(data, str(path)).refuse(subject, str(path.parent))


def refuse_unsigned(path: Path) -> None:
    """Raise IntegrityError where keys are pinned: a plain file carries no signature."""
    if found := key_files(path):
        raise IntegrityError(
            f"{path} is a plain file, which cannot carry a signature; {found[0]} accepts only "
            "signed bundles",
            next_step="edge build MODEL --device BOARD -o OUT --sign KEY, and open OUT",
        )


def list_folders(path: Path) -> list[Path]:
    """The folders that `path` lies in: as given, and as every link and mount on the way has it."""
    places = [Path(os.path.abspath(path)).parent]
    whole = path if path.is_absolute() else Path.cwd() / path
    done, todo = Path(os.sep), [*reversed(whole.parts[1:])]
    n_links = 0
    while todo and n_links < _MAX_LINKS:
        part = todo.pop()
        if part == os.pardir:
            done = done.parent
            continue
        try:
            target = Path(os.readlink(done / part))
        except OSError:  # no link, or nothing that we may see
            done /= part
            continue
        n_links += 1
        places.append(done)
        done = Path(os.sep) if target.is_absolute() else done
        todo += reversed(target.parts[target.is_absolute() :])
    real = Path(os.path.realpath(path))
    return list(dict.fromkeys([*places, *(place.parent for place in (real, *_list_mounts(real)))]))


def _list_mounts(real: Path) -> list[Path]:
    """Other paths of the same file, where a folder of its file system is mounted twice (Linux)."""
    mounts = []
    try:
        table = Path("/proc/self/mountinfo").read_bytes().decode("utf-8", "surrogateescape")
    except OSError:
        return []
    for line in table.splitlines():
        fields = [_OCTAL.sub(lambda code: chr(int(code[1], 8)), word) for word in line.split(" ")]
        mounts.append((fields[2], Path(fields[3]), Path(fields[4])))
    # The last mount that covers the path is the one that is seen.
    own = [mount for mount in mounts if real.is_relative_to(mount[2])]
    if not own:
        return []
    device, root, point = max(enumerate(own), key=lambda m: (len(m[1][2].parts), m[0]))[1]
    inside = root / real.relative_to(point)
    return [
        place
        for other, top, mounted_at in mounts
        if other == device and inside.is_relative_to(top)
        if _is_same(place := mounted_at / inside.relative_to(top), real)
    ]


def _is_same(one: Path, two: Path) -> bool:
    try:
        return os.path.samefile(one, two)
    except OSError:
        return False


def _existing(paths: Sequence[Path]) -> list[Path]:
    found = []
    for path in dict.fromkeys(paths):
        try:
            path.lstat()
        except (FileNotFoundError, NotADirectoryError):
            continue
        except OSError:
            pass  # there, but not for us to see: reading it will report it
        found.append(path)
    return found


def _read(path: Path, limit: int, shut: Callable[[str, str], IntegrityError]) -> bytes:
    try:
        return OpenedFile.open(path).read(limit)
    except (EdgeError, OSError) as error:
        raise shut(str(path), str(error).removeprefix(f"{path}: ")) from None


def _shut(place: str, why: str) -> IntegrityError:
    return IntegrityError(
        f"{place} lists accepted or revoked keys, but cannot be used ({why}): nothing is accepted",
        next_step="pin the keys again: edge key pin TARGET KEY.pub --replace",
    )
