"""Draw one look as lines of text: a pure function of the data and the terminal's size."""

import unicodedata
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from boardfit.edge.probe.sensors import describe_throttled
from boardfit.edge.process.live import Page
from boardfit.edge.units import format_bytes, format_seconds, printable
from boardfit.edge.watch.look import Look, Machine, ProcessMemory

Tone = Literal["plain", "bold", "dim", "bad"]
BARS = "▁▂▃▄▅▆▇█"
BARS_ASCII = "_.-=+*%#"
WAITING = "nothing of boardfit runs here now; waiting for edge chat, edge run or edge bench"
# Of the bits since boot (16 to 19) and now (0 to 3), those of now are an alarm.
_NOW = 0xF
# Percent of the time in which something waited for memory, from which on it is shown as an alarm.
TIGHT = 10.0
NS = 1e-9
WINDOW_S = 2.0
# Points of a sparkline's history.
KEPT = 120


@dataclass(frozen=True)
class Line:
    text: str
    tone: Tone = "plain"


@dataclass
class ProcessHistory:
    """Decode tokens/s of one process, now and before; `still_s` are the seconds in one state
    without another token.
    """

    rate: float | None = None
    history: Sequence[float] = ()
    still_s: float = 0.0
    _seen: deque[tuple[float, int, int]] = field(default_factory=deque)
    _state: tuple[object, ...] = ()
    _since_s: float = 0.0

    def add(self, page: Page, now_s: float) -> None:
        """Add a look. The rate is that of the last two seconds, None while nothing is decoded.
        Gaps and their time are the process's own: prefill between answers does not count.
        """
        state = (page.started, page.state, page.n_requests, page.n_out)
        if state != self._state:
            self._state, self._since_s = state, now_s
        self.still_s = now_s - self._since_s
        self._seen.append((now_s, page.n_gaps, page.gaps_ns))
        while len(self._seen) > 2 and now_s - self._seen[1][0] >= WINDOW_S:
            self._seen.popleft()
        _, n_before, ns_before = self._seen[0]
        n_gaps, span_ns = page.n_gaps - n_before, page.gaps_ns - ns_before
        self.rate = n_gaps / (span_ns * NS) if n_gaps > 0 and span_ns > 0 else None
        if self.rate is not None:
            self.history = (*self.history, self.rate)[-KEPT:]


def screen_lines(
    look: Look,
    histories: Mapping[int, ProcessHistory],
    *,
    width: int,
    height: int,
    title: str = "edge watch",
    keys: str = "",
    ascii_only: bool = False,
) -> list[Line]:
    """At most `height` lines of at most `width` columns. Processes that do not fit are counted."""
    bars = BARS_ASCII if ascii_only else BARS
    head = f"{title}  {printable(look.machine.name or '', 60)}".rstrip()
    room = width - display_width(head) - display_width(keys)
    lines = [Line(head + " " * room + keys if keys and room > 1 else head, "bold"), Line("")]
    lines += machine_lines(look.machine)
    blocks = [
        [Line(""), *process_lines(page, memory, histories.get(page.pid, ProcessHistory()), bars)]
        for page, memory in look.processes
    ]
    if not blocks:
        blocks = [[Line(""), Line(WAITING, "dim")]]
    for i, block in enumerate(blocks):
        left = len(blocks) - i - 1
        if len(lines) + len(block) + (1 if left else 0) > height:
            if i == 0:
                lines += block[: max(0, height - len(lines))]
            else:
                lines.append(Line(f"and {left + 1} more; a taller window shows them", "dim"))
            break
        lines += block
    return [Line(shorten(line.text, width), line.tone) for line in lines[: max(1, height)]]


def machine_lines(machine: Machine) -> list[Line]:
    """One line per sensor that answers, one that names those that do not, memory and load."""
    bits = machine.throttled
    sensor = f" ({machine.power_kind})" if machine.power_kind else ""
    throttling = ", ".join(describe_throttled(bits)) or "none"
    clock = None if machine.clock_hz is None else machine.clock_hz / 1e9
    rows = (
        ("temperature", format_known(machine.temp_c, "{:.1f} °C"), False),
        ("clock", format_known(clock, "{:.2f} GHz"), False),
        ("power", format_known(machine.power_w, "{:.2f} W" + sensor), False),
        ("throttling", None if bits is None else throttling, bool((bits or 0) & _NOW)),
    )
    lines = [
        Line(f"{label:<12} {text}", "bad" if alarm else "plain")
        for label, text, alarm in rows
        if text is not None
    ]
    if absent := [label for label, text, _ in rows if text is None]:
        lines.append(Line(f"no sensor    {', '.join(absent)}", "dim"))
    used, pressure = machine.swap_used_bytes, machine.pressure
    memory = f"{format_bytes(machine.available_bytes)} of {format_bytes(machine.ram_bytes)} free"
    memory += f", swap {format_bytes(used)} used" if used is not None else ""
    memory += f", pressure {pressure:.1f} %" if pressure is not None else ""
    lines.append(Line(f"memory       {memory}", "bad" if (pressure or 0) >= TIGHT else "plain"))
    if machine.load_1min is not None:
        cores = f" on {machine.n_cores} cores" if machine.n_cores else ""
        lines.append(Line(f"load         {machine.load_1min:.2f}{cores}"))
    return lines


def process_lines(
    page: Page, memory: ProcessMemory, past: ProcessHistory, bars: str = BARS
) -> list[Line]:
    quant = f" ({printable(page.quant, 40)})" if page.quant else ""
    threads = f", {page.n_threads} threads" if page.n_threads > 1 else ""
    engine = f", {printable(page.engine, 40)}{threads}" if page.engine else ""
    name = printable(page.model, 60)
    lines = [Line(f"{printable(page.command, 20)}  {name}{quant}{engine}, pid {page.pid}", "bold")]
    if page.label:
        lines.append(Line(f"  test         {printable(page.label, 80)}"))
    lines.append(Line(f"  now          {doing(page, past)}"))
    if page.engine:
        lines.append(Line(f"  decode       {format_speed(page, past, bars)}"))
        ttft, prompt = format_seconds(page.ttft_ns * 1e-9), tokens(page.ttft_n_prompt)
        first = f"{ttft} after {prompt} of prompt" if page.ttft_ns else "–"
        lines.append(Line(f"  first token  {first}"))
    kinds = {"anonymous": memory.anon_bytes, "mapped": memory.file_bytes}
    kinds |= {"PSS": memory.pss_bytes, "swap": memory.swap_bytes}
    if memory.anon_bytes is None:
        kinds = {"resident": memory.rss_bytes}
    text = "  ".join(f"{label} {format_bytes(value)}" for label, value in kinds.items())
    lines.append(Line(f"  memory       {text}", "bad" if memory.swap_bytes else "plain"))
    return lines


def doing(page: Page, past: ProcessHistory) -> str:
    waited = f", {format_seconds(past.still_s)} so far" if past.still_s >= 1 else ""
    if page.state == "loading":
        return f"loads the model{waited}"
    if page.state == "prefill":
        return f"reads {tokens(page.n_prompt)}{waited}"
    if page.state == "decode":
        slow = f", none for {format_seconds(past.still_s)}" if past.still_s >= 3 else ""
        return f"writes, {tokens(page.n_out)} so far{slow}"
    if not page.engine:
        return "runs"
    return f"waits; {tokens(page.n_total)} so far, in requests: {page.n_requests}"


def format_speed(page: Page, past: ProcessHistory, bars: str) -> str:
    """Decode tokens/s now, else of the latest answers; the bars show how it went."""
    if past.rate is not None:
        text = f"{past.rate:7.1f} tokens/s"
    elif (last := past.history[-1] if past.history else mean_rate(page)) is not None:
        text = f"{last:7.1f} tokens/s at last"
    else:
        return "–"
    return f"{text:<26}{sparkline(past.history, bars)}".rstrip()


def tokens(n: int) -> str:
    return "1 token" if n == 1 else f"{n:,} tokens"


def sparkline(values: Sequence[float], bars: str = BARS, most: int = 24) -> str:
    """The newest values as bars from 0 to the highest of them."""
    newest = list(values)[-most:]
    top = max(newest, default=0.0)
    if top <= 0 or len(newest) < 2:
        return ""
    return "".join(bars[min(len(bars) - 1, int(v / top * len(bars)))] for v in newest)


def format_known(value: float | None, form: str) -> str | None:
    return None if value is None else form.format(value)


def display_width(text: str) -> int:
    """Columns of a terminal: wide characters take two, combining ones none."""
    shown = [character for character in text if not unicodedata.combining(character)]
    return len(shown) + sum(unicodedata.east_asian_width(character) in "WF" for character in shown)


def shorten(text: str, width: int) -> str:
    """`text` in at most `width` columns."""
    if display_width(text) <= width:
        return text
    fitting = (i for i in range(len(text), 0, -1) if display_width(text[:i]) < width)
    return text[: next(fitting, 0)] + "…"


def mean_rate(page: Page) -> float | None:
    """Decode tokens/s over all answers so far; None before two tokens of one."""
    return page.n_gaps / (page.gaps_ns * NS) if page.gaps_ns > 0 else None
