"""systemd units, made here from two templates and never taken from a bundle. What a bundle decides
in them is typed: its id, its name as a description, its planned memory.
"""

import re
import shlex

from boardfit.edge.disk.data_files import read_text_beside
from boardfit.edge.process.cage import SYSTEMD
from boardfit.edge.serve.unit import description, planned_bytes
from boardfit.edge.slots import layout
from boardfit.edge.slots.failed_starts import MAX_FAILED, count_script, reset_script
from boardfit.edge.types import Plan
from boardfit.edge.units import MIB

#: Where the releases lie on a board that runs services.
DEFAULT_ROOT = "/opt/boardfit"
SERVICE, INSTALLER = "boardfit.service", "boardfit-install.service"
INSTALL_SCRIPT = "board/install.sh"


def service_unit(name: str, plan: Plan, root: str = DEFAULT_ROOT) -> str:
    """The service that checks a release at boot, within the plan's memory. Raises InputError when
    that is no number of bytes.
    """
    peak = planned_bytes(plan)
    return read_text_beside(
        __file__,
        SERVICE,
        name=description(name),
        root=root,
        most=MAX_FAILED,
        count=as_owner(count_script(root), root),
        reset=as_owner(reset_script(root), root),
        planned_mib=-(-peak // MIB),
        max_mib=-(-peak * 11 // (10 * MIB)),
        cage=SYSTEMD.removesuffix("\n"),
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
    return read_text_beside(
        __file__,
        INSTALLER,
        short_id=bundle_id[:12],
        root=root,
        release=f"{root}/{layout.release_folder(bundle_id)}",
        script=INSTALL_SCRIPT,
        uid=int(uid),
        gid=int(gid),
        cage=SYSTEMD.removesuffix("\n"),
    )
