"""Store the time model per board and model, for the first request after a restart."""

from __future__ import annotations

import hashlib
import json
import os
import platform
from dataclasses import asdict
from pathlib import Path

from boardfit.edge.deadline.time_model import Prior, TimeModel
from boardfit.edge.disk.atomic import write_atomic
from boardfit.edge.errors import InputError
from boardfit.edge.types import EngineInfo

_MAX_BYTES = 256 * 1024


def state_directory() -> Path:
    """Where boardfit keeps what it learned: XDG_STATE_HOME or the user's state folder."""
    base = os.environ.get("XDG_STATE_HOME") or Path.home() / ".local/state"
    return Path(base) / "boardfit"


class TimeStore:
    """The file of one board, model and way to run it. Losing it costs accuracy, nothing else."""

    def __init__(self, model_id: str, info: EngineInfo, folder: Path | None = None) -> None:
        """`model_id` is the bundle's id or a model file's identity."""
        key = {
            "board": f"{platform.node()} {platform.machine()} {os.cpu_count()}",
            "model": model_id,
            "engine": [info.name, info.build, info.n_ctx, info.n_threads, info.kv_type],
        }
        name = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()[:32]
        self.path = (folder or state_directory() / "time") / f"{name}.json"

    def load(self, prior: Prior) -> TimeModel:
        """The stored model, or a new one from `prior` where there is none that can be read."""
        try:
            if self.path.stat().st_size > _MAX_BYTES:
                raise InputError(f"{self.path} is too large")
            stored = json.loads(self.path.read_bytes())
            return TimeModel.from_dict(stored["times"], prior)
        except Exception:  # a damaged file is learned again
            return TimeModel(prior)

    @property
    def is_known(self) -> bool:
        return self.path.exists()

    def save(self, times: TimeModel, info: EngineInfo) -> None:
        """Keep `times`; a read-only home is no error."""
        document = {"times": times.to_dict(), "engine": {**asdict(info), "details": {}}}
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            write_atomic(self.path, json.dumps(document).encode(), mode=0o600)
        except OSError:
            pass
