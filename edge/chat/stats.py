"""Print the cost of an answer: `/stats` of `edge chat`."""

from __future__ import annotations

import psutil

from boardfit.edge.chat.session import Session
from boardfit.edge.units import format_bytes, format_seconds


def stats_lines(session: Session) -> list[str]:
    """What the last answer cost, and what the process holds now."""
    lines = []
    answer = session.last_answer
    if answer is not None:
        used = answer.n_prompt + answer.n_out
        lines += [
            f"prompt   {answer.n_prompt} tokens, {answer.n_reused} of them reused; "
            f"{_rate(answer.prefill_tps)}",
            f"answer   {answer.n_out} tokens, {_rate(answer.decode_tps)}; ended by "
            f"{answer.finish_reason}",
            f"first    {format_seconds(answer.ttft_s)}, whole {format_seconds(answer.total_s)}",
            f"context  {used} of {session.engine.n_ctx} tokens",
        ]
    process = psutil.Process()
    memory = process.memory_info()
    shared = getattr(memory, "shared", None)
    anonymous = None if shared is None else memory.rss - shared
    lines.append(
        f"memory   {format_bytes(memory.rss)} resident, {format_bytes(anonymous)} of it anonymous"
    )
    return lines


def _rate(tps: float | None) -> str:
    return "–" if tps is None else f"{tps:.1f} tokens/s"
