"""The health gate: test that a release works on this machine.

`edge slots check ROOT/releases/ID/bundle --json` runs on the board itself: every byte is hashed,
the model is loaded, a fixed question is answered. `judge` compares with what was planned. It is
pure, so that a board can report and a host can decide.
"""

import time
from collections.abc import Mapping
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from boardfit.edge.errors import EdgeError, InputError
from boardfit.edge.fields import OrNull, Real, Schema, Text, Whole, check_fields
from boardfit.edge.terminal.progress import Progress
from boardfit.edge.types import Engine, GenerationConfig, Plan, Trace
from boardfit.edge.units import format_bytes

PROMPT = "Say in one short sentence what you can do for me."
MAX_TOKENS = 32
#: Share of the planned decode speed that must be reached, and of the planned memory that may be
#: used. Half: a board that is hot or busy is slower, a board that swaps is far slower.
MIN_SPEED = 0.5
MAX_MEMORY = 1.1

KIND = "boardfit-health"
SCHEMA = 1


@dataclass(frozen=True)
class Health:
    """What was measured. `error` is why it could not be, with everything after it None.

    Where an emulator plays the board, `emulator_bytes` is what it takes itself, and no part of
    `peak_rss_bytes`.
    """

    error: str | None = None
    error_kind: str | None = None
    text: str = ""
    n_out: int = 0
    load_s: float | None = None
    ttft_s: float | None = None
    decode_tps: float | None = None
    peak_rss_bytes: int | None = None
    emulator_bytes: int | None = None
    engine: str | None = None

    def to_dict(self) -> dict[str, Any]:
        return {"kind": KIND, "schema": SCHEMA, **vars(self)}


_FIGURE, _BYTES = OrNull(Real(0)), OrNull(Whole(0))
HEALTH_FIELDS: Schema = {
    **dict.fromkeys(("error", "error_kind", "engine"), OrNull(Text())),
    "text": Text(),
    "n_out": Whole(0),
    **dict.fromkeys(("load_s", "ttft_s", "decode_tps"), _FIGURE),
    **dict.fromkeys(("peak_rss_bytes", "emulator_bytes"), _BYTES),
}


def parse_health(document: Any) -> Health:
    """Inverse of `Health.to_dict`, for what a board has sent. Raises InputError for the rest: a
    figure that is none must not pass for one that was not measured.
    """
    if not isinstance(document, dict) or document.get("kind") != KIND:
        raise InputError("the board's answer is not a health report")
    check_fields(document, HEALTH_FIELDS, "health report", others=True)
    return Health(**{key: document[key] for key in HEALTH_FIELDS if key in document})


def check_release(
    bundle_path: Path, *, quick: bool = False, progress: Progress | None = None
) -> Health:
    """Verify every byte of a bundle (`quick`: those not verified before), load it as planned, ask
    the fixed question, then time a longer answer. Never raises for a release that does not work.
    """
    from boardfit.edge.bundle.bundle import open_bundle
    from boardfit.edge.engines import EngineSettings, open_engine
    from boardfit.edge.probe.machine import usable_processors

    try:
        bundle = open_bundle(bundle_path, verify=None if quick else True, progress=progress)
        started_s = time.monotonic()
        settings = EngineSettings.from_plan(bundle.plan)
        if (cores := len(usable_processors() or ())) and cores < bundle.plan.n_threads:
            settings = settings.replace(n_threads=cores)  # spinning threads would judge themselves
        engine = open_engine(bundle.plan.engine, bundle.model, settings)
        load_s = time.monotonic() - started_s
        with closing(engine):
            return _ask(engine, load_s, quick)
    except (EdgeError, OSError, MemoryError) as error:
        return Health(error=str(error) or type(error).__name__, error_kind=type(error).__name__)


def _ask(engine: Engine, load_s: float, quick: bool) -> Health:
    from boardfit.edge.chat.run_command import peak_rss_bytes, prompt_tokens
    from boardfit.edge.chat.session import Answer, summarize
    from boardfit.edge.probe.emulation import own_emulated_memory

    def answer(config: GenerationConfig) -> Answer:
        request_ns = time.monotonic_ns()
        tokens = prompt_tokens(engine, PROMPT, None, raw=False)
        events = list(engine.stream(tokens, config))
        start = engine.last_start
        return summarize(Trace.of_stream(request_ns, tokens, events, start), start)

    reply = answer(GenerationConfig(max_tokens=MAX_TOKENS))
    # An answer may be two words long; speed takes more.
    timed = reply if quick else answer(GenerationConfig(max_tokens=MAX_TOKENS, ignore_eos=True))
    info = engine.describe()
    peak_bytes, emulated = peak_rss_bytes(), own_emulated_memory()
    if emulated is not None and peak_bytes is not None:
        # Translated code only grows: the emulator had less at the peak, so this is the least.
        peak_bytes = max(emulated.guest, peak_bytes - emulated.emulator)
    return Health(
        text=reply.text,
        n_out=reply.n_out,
        load_s=load_s,
        ttft_s=reply.ttft_s,
        decode_tps=timed.decode_tps,
        peak_rss_bytes=peak_bytes,
        emulator_bytes=emulated.emulator if emulated else None,
        engine=f"{info.name} {info.version}",
    )


def judge(
    health: Health,
    plan: Plan | Mapping[str, Any],
    *,
    min_speed: float = MIN_SPEED,
    max_memory: float = MAX_MEMORY,
) -> list[str]:
    """Everything that keeps a release from being used, in sentences; empty when it may be.
    `min_speed` and `max_memory` are shares of what was planned; 0 asks for nothing.
    """
    plan = plan if isinstance(plan, Plan) else Plan.from_dict(plan)
    if health.error is not None:
        return [health.error]
    failures = _find_nonsense(health)
    least_tps = (plan.decode_tps or 0) * min_speed
    if health.decode_tps is not None and health.decode_tps < least_tps:
        failures.append(
            f"{health.decode_tps:.1f} tokens/s; {least_tps:.1f} is the least ({min_speed:.0%} of "
            f"the {plan.decode_tps:.1f} planned)"
        )
    most = int(plan.peak_bytes * max_memory)
    if most and health.peak_rss_bytes is not None and health.peak_rss_bytes > most:
        failures.append(
            f"it takes {format_bytes(health.peak_rss_bytes)} of memory; {format_bytes(most)} is "
            f"the most ({max_memory:.0%} of the {format_bytes(plan.peak_bytes)} planned)"
        )
    return failures


def _find_nonsense(health: Health) -> list[str]:
    """Recognize an answer that no working model gives."""
    text = health.text.strip()
    if health.n_out < 1 or not text:
        return ["it answered nothing"]
    broken = sum(c == "\N{REPLACEMENT CHARACTER}" or not (c.isprintable() or c.isspace())
                 for c in text)  # fmt: skip
    if broken * 4 > len(text):
        return [f"its answer is not text: {text[:40]!r}"]
    if len(text) >= 24 and len(set(text)) <= 2:
        return [f"its answer is one character over and over: {text[:24]!r}"]
    return []
