"""Choose the folder of a model's states and the limit of its size.

Beside a bundle, in BUNDLE.states, if it carries the mark of this user; never inside it, where every
file is listed and hashed. Else in the user's cache, as where keys are pinned.
"""

import os
from pathlib import Path

from boardfit.edge.disk.verified import cache_directory
from boardfit.edge.engines.target import OpenModel
from boardfit.edge.errors import IntegrityError, UsageError
from boardfit.edge.states.store import DEFAULT_LIMIT_BYTES, StateStore, check_owner, is_claimed
from boardfit.edge.trust.pins import key_files
from boardfit.edge.units import parse_bytes

#: Environment variable: room for the states of one folder, for example 64MiB; "off": keep none.
VARIABLE = "BOARDFIT_STATES"


def open_store(opened: OpenModel) -> StateStore | None:
    """The store of an opened model, with the states that its bundle brings; None if its engine
    cannot save states, or if there is none to use and the user wants none kept.

    Raises UsageError if BOARDFIT_STATES is neither a size nor "off".
    """
    limit = limit_bytes()
    info = opened.engine.describe()
    shipped = opened.bundle.prefixes if opened.bundle else ()
    if not (limit or shipped) or not info.details.get("can_save_prefix"):
        return None
    # The engine's own check is stricter (it reads the model); this keeps files of others apart.
    identity = {
        "model": model_identity(opened),
        "engine": [info.name, info.version, info.build],
        "n_ctx": info.n_ctx,
        "kv_type": info.kv_type,
        "flash_attn": info.details.get("flash_attn"),
    }
    folder = beside_bundle(opened.bundle.path) if opened.bundle else user_folder()
    claims = folder != user_folder()
    return StateStore(folder, opened.name, identity, limit, claims=claims, shipped=shipped)


def model_identity(opened: OpenModel) -> str:
    """The bundle's id, or a plain file's name and size."""
    if opened.bundle is not None:
        return opened.bundle.id
    return f"{opened.path.name} {opened.model.stat().st_size}"


def limit_bytes() -> int:
    """What BOARDFIT_STATES says; 0 for "off"."""
    text = os.environ.get(VARIABLE, "").strip()
    if not text:
        return DEFAULT_LIMIT_BYTES
    if text.lower() in ("off", "no", "none"):
        return 0
    try:
        return parse_bytes(text)
    except ValueError as error:
        raise UsageError(f'{VARIABLE}: {error}, or "off"') from None


def user_folder() -> Path:
    return cache_directory() / "states"


def beside_bundle(bundle: Path) -> Path:
    """BUNDLE.states if it is there and ours, or can be made; else the user's folder, as everywhere
    that keys are pinned: files beside a signed bundle are not signed.
    """
    real = bundle.resolve()
    if not real.name or key_files(bundle):
        return user_folder()
    folder = real.with_name(f"{real.name}.states")
    if not os.access(folder if folder.exists() else folder.parent, os.W_OK | os.X_OK):
        return user_folder()
    if os.path.lexists(folder):
        try:
            check_owner(folder)
            is_ours = is_claimed(folder) or not any(folder.iterdir())
        except (IntegrityError, OSError):
            is_ours = False
        return folder if is_ours else user_folder()
    return folder
