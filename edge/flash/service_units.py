"""systemd units, made here from two templates and never taken from a bundle.

What a bundle decides in them is typed: its id, its name as a description, its planned memory.
"""

from __future__ import annotations

import re
import shlex

from boardfit.edge.errors import InputError
from boardfit.edge.process.cage import SYSTEMD
from boardfit.edge.slots import layout
from boardfit.edge.slots.failed_starts import MAX_FAILED, count_script, reset_script
from boardfit.edge.types import Plan
from boardfit.edge.units import MIB, printable

#: Where the releases lie on a board that runs services.
DEFAULT_ROOT = "/opt/boardfit"
SERVICE, INSTALLER = "boardfit.service", "boardfit-install.service"
INSTALL_SCRIPT = "board/install.sh"

_MAX_NAME = 80
_MOST_BYTES = 1 << 50

_SERVICE = """\
# boardfit: at boot, check that the current release answers, within the memory it was planned for.
# A release that failed {most} starts gives way to the one before (edge slots list TARGET shows it).
# Other units may wait for it (Requires=boardfit.service, After=boardfit.service); to run a program
# of your own in the same cage: systemctl edit boardfit, empty ExecStart=, and name yours.
[Unit]
Description=boardfit: {name}
ConditionPathExists={root}/current/env/bin/edge
RequiresMountsFor={root}

[Service]
Type=oneshot
RemainAfterExit=yes
ExecStartPre={count}
ExecStart={root}/current/env/bin/edge run {root}/current/bundle --max-tokens 1 --raw hello
ExecStartPost={reset}
TimeoutStartSec=300
Restart=no

# The plan predicts a peak of {planned_mib} MiB. At ten per cent more the kernel ends this, not the
# board.
MemoryMax={max_mib}M
MemorySwapMax=0
TasksMax=64
OOMPolicy=kill

# A user of its own that exists only while it runs. The release is read-only to it, like everything
# else; what it may write (verified hashes) lies in /var/cache/boardfit.
DynamicUser=yes
CacheDirectory=boardfit
Environment=BOARDFIT_CACHE=/var/cache/boardfit
ReadOnlyPaths={root}
{cage}UMask=0077

[Install]
WantedBy=multi-user.target
"""

_INSTALLER = """\
# boardfit: when the board starts, install the engine of one release, once: no network, no compiler.
# It does nothing where that has been done. What it runs comes from the bundle, and so it is caged.
[Unit]
Description=boardfit: install the engine of release {short_id}
ConditionPathExists={release}/bundle/{script}
ConditionPathExists=!{release}/env/bin/edge
RequiresMountsFor={root}
Before=boardfit.service

[Service]
Type=oneshot
RemainAfterExit=yes
ExecStart=/bin/sh {release}/bundle/{script} {release}/env
TimeoutStartSec=900
MemoryMax=75%
TasksMax=64
OOMPolicy=kill

# The owner of the releases. It may write beside the bundle of this release and nowhere else, and
# it needs nothing of systemd: the image has this and boardfit.service enabled already. The last two
# lines matter where the owner is root.
User={uid}
Group={gid}
ReadWritePaths={release}
ReadOnlyPaths={release}/bundle
InaccessiblePaths=-/boot -/etc/ssh -/etc/ssl/private
InaccessiblePaths=-/etc/shadow -/etc/shadow- -/etc/gshadow -/etc/gshadow-
{cage}UMask=0022

[Install]
WantedBy=multi-user.target
"""


def service_unit(name: str, plan: Plan, root: str = DEFAULT_ROOT) -> str:
    """The text of the service that checks a release at boot, within the plan's memory.

    Raises InputError when the plan's memory is no number of bytes.
    """
    peak = planned_bytes(plan)
    return _SERVICE.format(
        name=description(name),
        root=root,
        most=MAX_FAILED,
        count=as_owner(count_script(root), root),
        reset=as_owner(reset_script(root), root),
        planned_mib=-(-peak // MIB),
        max_mib=-(-peak * 11 // (10 * MIB)),
        cage=SYSTEMD,
    )


def as_owner(script: str, root: str) -> str:
    """A command line of a unit that runs a shell script outside the cage, as the owner of `root`.
    Its failure does not keep the service from starting.
    """
    become = (
        f"set -- $(ls -ldn {shlex.quote(root)}); exec setpriv --reuid $3 --regid $4 "
        '--clear-groups --no-new-privs /bin/sh -c "$0"'
    )
    words = [f"'{';'.join(_statements(text))}'".replace("$", "$$") for text in (become, script)]
    return "-+/bin/sh -c " + " ".join(words)


def _statements(script: str) -> list[str]:
    """Lines of a script, so that `;` can join them: none goes on after a word such as `then`."""
    joined = re.sub(r"\b(then|do|else)\n\s*", r"\1 ", script.strip())
    return [line.strip() for line in joined.split("\n")]


def install_unit(bundle_id: str, uid: int, gid: int, root: str = DEFAULT_ROOT) -> str:
    """The text of the service that installs the engine of one release when the board starts."""
    return _INSTALLER.format(
        short_id=bundle_id[:12],
        root=root,
        release=f"{root}/{layout.release_folder(bundle_id)}",
        script=INSTALL_SCRIPT,
        uid=int(uid),
        gid=int(gid),
        cage=SYSTEMD,
    )


def description(name: str) -> str:
    """A model's name as a unit may show it. Percent signs, backslashes, quotes and line breaks mean
    something to systemd, so that only harmless signs are kept.
    """
    return "".join(c if c.isalnum() or c in " .,:()+-_" else "_" for c in name)[:_MAX_NAME].strip()


def planned_bytes(plan: Plan) -> int:
    """The predicted peak. Raises InputError when it is no number of bytes."""
    try:
        peak = plan.peak_bytes
    except TypeError:
        peak = None
    if type(peak) is not int or not 0 < peak <= _MOST_BYTES:
        raise InputError(
            f"the plan's memory is {printable(repr(peak), 40)}, expected a number of bytes",
            next_step="build the bundle again",
        )
    return peak
