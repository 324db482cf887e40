"""A release that fails its starts gives way to the one before, at boot.

`releases/<id>/failed_starts` holds a number. The service counts it up before a start and removes it
after a good one, so that a hang, a crash and a power cut count as failures. At the limit `current`
is switched to the newest release before it that is below the limit.

The service does this in sh: the programs of a release that fails cannot be asked for help. The
script needs sed, grep, readlink and mv of coreutils. It contains no single quote, backslash or
percent sign, because systemd would read them.
"""

from __future__ import annotations

import shlex

from boardfit.edge.slots.files import BoardFiles
from boardfit.edge.slots.layout import CURRENT, RELEASES, STATE, release_folder

FAILED_STARTS = "failed_starts"
#: Starts that may fail before a release gives way.
MAX_FAILED = 3
_MAX_BYTES = 16

_COUNT = """\
cd {root} || exit 0
id=$(readlink {current}) || exit 0
id=${{id#{releases}/}}
echo $id | grep -qE "^[0-9a-f]{{64}}$" || exit 0
number() {{ head -c 2 {releases}/$1/{file} 2>/dev/null | grep -oE "^[1-9]" || echo 0; }}
n=$(number $id)
to=
if [ $n -ge {most} ]; then
 for i in $(sed "/]/q" {state} | grep -oE "[0-9a-f]{{64}}"); do
  if [ $i = $id ]; then break; fi
  if [ -d {releases}/$i/bundle ] && [ $(number $i) -lt {most} ]; then to=$i; fi
 done
fi
if [ -n "$to" ]; then
 ln -sfn {releases}/$to .{current}.boot && mv -T .{current}.boot {current} && sync || exit 1
 echo "release $id failed $n starts: release $to is current now"
 id=$to
 n=$(number $id)
fi
if [ $n -lt 9 ]; then n=$((n + 1)); fi
echo $n > {releases}/$id/.{file} && mv -f {releases}/$id/.{file} {releases}/$id/{file}
sync
"""

_RESET = """\
cd {root} || exit 0
id=$(readlink {current}) || exit 0
id=${{id#{releases}/}}
echo $id | grep -qE "^[0-9a-f]{{64}}$" || exit 0
rm -f {releases}/$id/{file}
"""


def count_script(root: str) -> str:
    """What runs before a start: count it, and give way where too many have failed."""
    return _fill(_COUNT, root)


def reset_script(root: str) -> str:
    """What runs after a good start."""
    return _fill(_RESET, root)


def _fill(text: str, root: str) -> str:
    return text.format(
        root=shlex.quote(root), current=CURRENT, releases=RELEASES, state=STATE,
        file=FAILED_STARTS, most=MAX_FAILED,
    )  # fmt: skip


def failed_starts(files: BoardFiles, release_id: str) -> int:
    """How many starts of a release have failed since the last good one."""
    data = files.read(f"{release_folder(release_id)}/{FAILED_STARTS}", _MAX_BYTES) or b""
    text = data.decode("ascii", "replace").strip()
    return int(text) if text.isascii() and text.isdigit() else 0


def forgive_starts(files: BoardFiles, release_id: str) -> None:
    """Begin to count anew: a person has chosen this release."""
    folder = release_folder(release_id)
    if FAILED_STARTS in files.entries(folder):
        files.remove([f"{folder}/{FAILED_STARTS}"])
        files.sync([folder])
