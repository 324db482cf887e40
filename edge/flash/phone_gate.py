"""The health gate on a phone, which has no Python: the bundle's static programs answer instead.

The variant is chosen as the phone would, by the dot products in its /proc/cpuinfo. The speed is
what the program prints on stderr; its memory is not known.
"""

from __future__ import annotations

import re
import shlex

from boardfit.edge.bundle.bundle import Bundle
from boardfit.edge.errors import InputError
from boardfit.edge.flash.board import Board
from boardfit.edge.flash.session import Done
from boardfit.edge.slots.health import MAX_TOKENS, PROMPT, Health
from boardfit.edge.units import printable

#: Weakest first; the second needs `asimddp`.
VARIANTS = ("armv8.0", "armv8.2-dotprod")
PROGRAM, BENCH_PROGRAM = "llama-completion", "llama-bench"
N_PROMPT = 128
_END = "[end of text]"
# common_perf_print (llama.cpp, common/common.cpp): "prompt eval time = …", "eval time = …".
_NUMBER = r"([0-9]{1,12}(?:\.[0-9]{1,12})?)"
_SPEED = re.compile(rf"(?<!prompt )eval time = [^\n]{{0,200}}?{_NUMBER} tokens per second")
_TTFT = re.compile(rf"prompt eval time = {{1,20}}{_NUMBER} ms")
_N_OUT = re.compile(rf"(?<!prompt )eval time = {{1,20}}{_NUMBER} ms / {{1,20}}([0-9]{{1,9}}) runs")


def has_tools(bundle: Bundle) -> bool:
    """Whether the bundle brings static programs instead of wheels."""
    return any(file.name.endswith(f"/{PROGRAM}") for file in bundle.files)


def tool_script(bundle: Bundle, folder: str) -> str:
    """Shell that asks the fixed question; its first line of output is the variant."""
    template = any(file.role == "template" for file in bundle.files)
    plan, model = bundle.plan, shlex.quote(bundle.model_file.name)
    chat = "-cnv -st --jinja" if template else "-no-cnv"
    # A transfer keeps no modes: a bundle has none.
    return (
        f"cd {shlex.quote(folder)} || exit 70\n"
        f"chmod 755 tools/*/llama-* || exit 71\n"
        f"v={VARIANTS[0]}; grep -qw asimddp /proc/cpuinfo && v={VARIANTS[1]}\n"
        "echo $v\n"
        f"exec tools/$v/{PROGRAM} -m {model} -p {shlex.quote(PROMPT)} -n {MAX_TOKENS} --temp 0 "
        f"-c {_number(plan.n_ctx)} -t {_number(plan.n_threads)} --no-warmup "
        f"--no-display-prompt --simple-io {chat} </dev/null"
    )


def bench_script(bundle: Bundle, folder: str, result: str, repeats: int) -> str:
    """Shell that measures with the bundle's llama-bench, and leaves JSON Lines in `result`."""
    plan, model = bundle.plan, shlex.quote(bundle.model_file.name)
    return (
        f"cd {shlex.quote(folder)} || exit 70\n"
        f"chmod 755 tools/*/llama-* || exit 71\n"
        f"v={VARIANTS[0]}; grep -qw asimddp /proc/cpuinfo && v={VARIANTS[1]}\n"
        f"exec tools/$v/{BENCH_PROGRAM} -m {model} -p {N_PROMPT} -n {MAX_TOKENS} -r {repeats} "
        f"-t {_number(plan.n_threads)} -o jsonl > {shlex.quote(result)} </dev/null"
    )


def _number(value: object) -> str:
    """A number of the plan for a shell line. Raises InputError for anything else."""
    if type(value) is not int or not 0 < value < 1 << 31:
        raise InputError(
            f"the plan has {printable(repr(value), 40)}, expected a whole number",
            next_step="build the bundle again",
        )
    return str(value)


def try_tools(board: Board, bundle: Bundle, folder: str, timeout_s: float) -> Done:
    """Run the question on the phone."""
    return board.execute(tool_script(bundle, folder), timeout_s=timeout_s)


def read_answer(done: Done) -> Health | None:
    """The report in what the program printed; None when it died."""
    if done.rc != 0:
        return None
    variant, _, answer = done.out.decode("utf-8", "replace").partition("\n")
    speed, first, count = (p.search(done.err) for p in (_SPEED, _TTFT, _N_OUT))
    text = answer.replace(_END, "").strip()
    return Health(
        text=text,
        n_out=int(count[2]) if count else len(text.split()),
        ttft_s=float(first[1]) / 1e3 if first else None,
        decode_tps=float(speed[1]) if speed else None,
        engine=f"static llama.cpp, {printable(variant, 40)}",
    )
