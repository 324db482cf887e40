"""A systemd unit for the board: hardened, limited to the memory that the plan predicts."""

from __future__ import annotations

from edge.types import Plan
from edge.units import MIB

DEFAULT_ROOT = "/opt/edgekit"

_UNIT = """\
# edgekit: at boot, check that the current release answers, within the memory it was planned for.
# Other units may wait for it (Requires=edgekit.service, After=edgekit.service); to run a program of
# your own in the same cage: systemctl edit edgekit, empty ExecStart=, and name yours.
#
#   sudo cp {root}/current/bundle/board/edgekit.service /etc/systemd/system/
#   sudo systemctl enable --now edgekit
[Unit]
Description=edgekit: {name}
ConditionPathExists={root}/current/env/bin/edge
RequiresMountsFor={root}

[Service]
Type=oneshot
RemainAfterExit=yes
ExecStart={root}/current/env/bin/edge run {root}/current/bundle --max-tokens 1 --raw hello
TimeoutStartSec=300
Restart=no

# The plan predicts a peak of {planned_mib} MiB. At ten per cent more the kernel ends this, not the
# board.
MemoryMax={memory_max}
MemorySwapMax=0
TasksMax=64
OOMPolicy=kill

# A user of its own that exists only while it runs. The release is read-only to it, like everything
# else; what it may write (verified hashes) lies in /var/cache/edgekit.
DynamicUser=yes
CacheDirectory=edgekit
Environment=EDGEKIT_CACHE=/var/cache/edgekit PYTHONDONTWRITEBYTECODE=1
ProtectSystem=strict
ReadOnlyPaths={root}
ProtectHome=yes
PrivateTmp=yes
PrivateDevices=yes
PrivateNetwork=yes
NoNewPrivileges=yes
CapabilityBoundingSet=
AmbientCapabilities=
ProtectKernelTunables=yes
ProtectKernelModules=yes
ProtectKernelLogs=yes
ProtectControlGroups=yes
ProtectClock=yes
ProtectHostname=yes
ProtectProc=invisible
RestrictAddressFamilies=none
RestrictNamespaces=yes
RestrictRealtime=yes
RestrictSUIDSGID=yes
LockPersonality=yes
MemoryDenyWriteExecute=yes
RemoveIPC=yes
SystemCallArchitectures=native
SystemCallFilter=@system-service
SystemCallFilter=~@privileged @resources
UMask=0077

[Install]
WantedBy=multi-user.target
"""


def service_unit(name: str, plan: Plan, root: str = DEFAULT_ROOT) -> str:
    """The unit's text. `name` is shown as the description; `root` is where the releases lie."""
    # '%' is systemd's own escape; a newline would begin another setting.
    shown = "".join(c for c in name if c.isprintable()).replace("%", "%%")[:80]
    memory_max = -(-plan.peak_bytes * 11 // (10 * MIB))
    return _UNIT.format(
        name=shown,
        root=root,
        planned_mib=-(-plan.peak_bytes // MIB),
        memory_max=f"{memory_max}M",
    )
