"""What this user has accepted by `edge pull --key`, so that no registry serves an older release.
There is one file for each signer, in the form of a board's rules.
"""

import hashlib
import os
from pathlib import Path

from boardfit.edge.disk.atomic import write_atomic
from boardfit.edge.disk.opened_file import OpenedFile
from boardfit.edge.disk.verified import config_directory
from boardfit.edge.errors import EdgeError, IntegrityError
from boardfit.edge.trust.board_rules import (
    MAX_RULES_BYTES,
    BoardRules,
    Subject,
    parse_rules,
)
from boardfit.edge.trust.ssh_formats import PublicKey


def floor_file(signer: PublicKey) -> Path:
    """Where the releases are recorded that were accepted from one signer."""
    return config_directory() / "pulled" / f"{hashlib.sha256(signer.blob).hexdigest()[:32]}.json"


def refuse_pulled(subject: Subject, signer: PublicKey, *, allow_older: bool) -> None:
    """Raise IntegrityError for an expired release, and for one older than was accepted here."""
    step = "edge pull --allow-older accepts it on purpose"
    _read(signer).refuse(subject, "this user", allow_older=allow_older, step=step)


def accept_pulled(subject: Subject, signer: PublicKey) -> None:
    """Record a release that was pulled: its number is the lowest that is accepted from now on."""
    rules, path = _read(signer), floor_file(signer)
    accepted = rules.with_accepted(subject, (), lower=True)
    if accepted != rules:
        try:
            path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            write_atomic(path, accepted.to_bytes(), mode=0o600)
        except OSError as error:
            raise IntegrityError(
                f"{path} cannot be written: {error.strerror}; an older release would be accepted "
                "next time",
                next_step="make that folder writable, then pull again",
            ) from None


def _read(signer: PublicKey) -> BoardRules:
    path = floor_file(signer)
    if not os.path.lexists(path):
        return BoardRules()
    try:
        return parse_rules(OpenedFile.open(path).read(MAX_RULES_BYTES), str(path))
    except (EdgeError, OSError) as error:
        raise IntegrityError(
            f"{path} states which releases were accepted, but cannot be used: {error}",
            next_step="remove it if you know why: older releases are accepted once more then",
        ) from None
