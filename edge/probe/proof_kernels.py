"""Compute with every kernel of the installed ggml, at small shapes, and compare with a reference
in plain Python, over weights that ggml's base library dequantizes. Before each case it prints its
number: a kernel that this CPU cannot run kills the process. Words: FOLDER N_THREADS FIRST_CASE
HOPELESS
"""

import array
import ctypes
import functools
import json
import math
import operator
import random
import struct
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from boardfit.edge.files.ggml_types import GGML_TYPES, row_bytes
from boardfit.edge.probe import ggml
from boardfit.edge.probe.ggml import PLAIN, Bench, NotOffered, Wrong

Row = Sequence[float]

#: Types of tensors that are never weights: integers, and what products quantize their input to.
_NO_WEIGHTS = {"I8", "I16", "I32", "I64", "F64", "Q8_1", "Q8_K"}
WEIGHT_TYPES = tuple(name for name in GGML_TYPES if name not in _NO_WEIGHTS)
#: As in `boardfit.edge.engines.settings.KV_TYPES`.
_KV_TYPES = ("F32", "F16", "BF16", "Q8_0", "Q5_1", "Q5_0", "Q4_1", "Q4_0", "IQ4_NL")

# A row of every block size; rows and columns beyond one tile of the widest kernel (AMX: 32 rows, 16
# columns) and beyond a multiple of it.
_WIDTH, _ROWS, _COLUMNS, _EXPERTS = 256, 32, 17, 2
_HEAD, _HEADS, _KEYS = 64, 2, 64
# Largest difference from the reference, as a share of the vectors' norms: some kernels add in half
# precision. A wrong kernel is off by some sixteenth.
_TOLERANCE = 2e-3


class ProofKernels(ggml.Ggml):
    """The functions of ggml that a proof needs beyond those that are timed."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        pointer, number = ctypes.c_void_p, ctypes.c_float
        bind = functools.partial(ggml.bind, self.base)
        self.mul_mat_id = bind("ggml_mul_mat_id", *[pointer] * 5)
        self.get_rows = bind("ggml_get_rows", *[pointer] * 4)
        self.attention = bind("ggml_flash_attn_ext", *[pointer] * 6, *[number] * 3)
        operands = {**dict.fromkeys(_BINARY, (pointer,)), **dict.fromkeys(_SCALED, (number,))}
        self.floats = {
            name: bind(f"ggml_{name}", *[pointer] * 3, *operands.get(name, ())) for name in _FLOATS
        }
        self.rope = bind("ggml_rope", *[pointer] * 4, ctypes.c_int, ctypes.c_int)
        self.cast = bind("ggml_cast", *[pointer] * 3, ctypes.c_int)
        self.buffer_name = bind("ggml_backend_buft_name", ctypes.c_char_p, pointer)

    def dequantize(self, kind: str, data: bytes, width: int) -> list[Row]:
        """Rows of numbers that `data` stands for, by the base library's reference code."""
        n = len(data) // row_bytes(kind, width) * width
        if kind == "F32":
            values = array.array("f", data)
        elif kind == "F16":
            values = array.array("f", struct.unpack(f"<{n}e", data))
        elif kind == "BF16":
            wide = b"".join(b"\0\0" + data[i : i + 2] for i in range(0, len(data), 2))
            values = array.array("f", wide)
        else:
            values = array.array("f", bytes(4 * n))
            # Its name there: `q4_K`, `iq2_xxs`.
            name = kind.lower()[:-1] + "K" if kind.endswith("_K") else kind.lower()
            address = values.buffer_info()[0]
            getattr(self.base, f"dequantize_row_{name}")(
                ctypes.c_char_p(data), ctypes.c_void_p(address), ctypes.c_int64(n)
            )
        return [values[i : i + width] for i in range(0, n, width)]


class KernelCase(NamedTuple):
    """One case to prove. `kind` is a tensor type, `` for plain floats; `buffer` is `plain` or the
    name of an extra buffer type.
    """

    op: str
    kind: str
    buffer: str
    n_threads: int


# ---- data ---------------------------------------------------------------------------------------


@functools.lru_cache(maxsize=2)
def make_weights(kind: str, n_rows: int) -> bytes:
    """Make rows of `_WIDTH` weights: numbers of few bits, or random bits in which no scale is
    infinite and no signed byte is -128, which quantizers never write.
    """
    source = random.Random(kind)
    n = n_rows * _WIDTH
    if kind in ("F32", "F16", "BF16"):
        values = [source.randint(-64, 64) / 64 for _ in range(n)]
        if kind == "F16":
            return struct.pack(f"<{n}e", *values)
        wide = array.array("f", values).tobytes()
        return wide if kind == "F32" else b"".join(wide[i + 2 : i + 4] for i in range(0, 4 * n, 4))
    table = bytes(0x81 if byte & 0xBF == 0x80 else byte & 0xBF for byte in range(256))
    return source.randbytes(row_bytes(kind, n)).translate(table)


@functools.lru_cache(maxsize=8)
def make_columns(n: int, width: int = _WIDTH) -> list[Row]:
    """Whole numbers up to 127 in size, of which each 32 hold one: quantization keeps them."""
    source = random.Random(n)
    columns: list[Row] = []
    for _ in range(n):
        values = [float(source.randint(-127, 127)) for _ in range(width)]
        for start in range(0, width, 32):
            values[start + source.randrange(32)] = 127.0
        columns.append(values)
    return columns


def pack(rows: Sequence[Row]) -> bytes:
    return b"".join(array.array("f", row).tobytes() for row in rows)


def unpack(data: bytes, width: int) -> list[Row]:
    values = array.array("f", data)
    return [values[i : i + width] for i in range(0, len(values), width)]


def dot(a: Row, b: Row) -> float:
    return float(sum(map(operator.mul, a, b)))


def norm(a: Row) -> float:
    return math.sqrt(dot(a, a))


def expect(got: Sequence[Row], want: Sequence[Row], allowed: Callable[[int, int], float]) -> None:
    """Raise Wrong at the first number that is further off than `allowed(row, column)`."""
    for i, (mine, right) in enumerate(zip(got, want, strict=True)):
        for j, (a, b) in enumerate(zip(mine, right, strict=True)):
            if not abs(a - b) <= allowed(i, j):  # a NaN is wrong, too
                raise Wrong(f"computes {a:.6g} for {b:.6g}")


# ---- cases --------------------------------------------------------------------------------------


@functools.lru_cache(maxsize=1)
def make_products(lib: ProofKernels, kind: str) -> tuple[list[Row], list[Row]]:
    """Every column's product with weights of one type, and how far off each number may be."""
    weights = lib.dequantize(kind, make_weights(kind, _ROWS), _WIDTH)
    columns = make_columns(_COLUMNS)
    sizes, lengths = [norm(row) for row in weights], [norm(column) for column in columns]
    return (
        [[dot(row, column) for row in weights] for column in columns],
        [[_TOLERANCE * size * length + 1e-6 for size in sizes] for length in lengths],
    )


def run_product(lib: ProofKernels, case: KernelCase, buffer: int | None) -> None:
    """One column as decode takes it, then several as prefill does."""
    data, columns = make_weights(case.kind, _ROWS), make_columns(_COLUMNS)
    want, allowed = make_products(lib, case.kind)
    for n in (1, _COLUMNS):
        with Bench(lib, case.n_threads, buffer) as bench:
            matrix = bench.weight(case.kind, data, _WIDTH, _ROWS)
            product = lib.mul_mat(bench.rest, matrix, bench.input(pack(columns[:n]), _WIDTH, n))
            got = unpack(bench.compute(product), _ROWS)
        expect(got, want[:n], lambda i, j: allowed[i][j])


def run_experts(lib: ProofKernels, case: KernelCase, buffer: int | None) -> None:
    """Each column through one of two experts."""
    data = make_weights(case.kind, _ROWS * _EXPERTS)
    weights, columns = lib.dequantize(case.kind, data, _WIDTH), make_columns(5)
    chosen = [i % _EXPERTS for i in range(len(columns))]
    rows = [weights[e * _ROWS : (e + 1) * _ROWS] for e in chosen]
    with Bench(lib, case.n_threads, buffer) as bench:
        experts = bench.weight(case.kind, data, _WIDTH, _ROWS, _EXPERTS)
        inputs = bench.input(pack(columns), _WIDTH, 1, len(columns))
        ids = bench.input(array.array("i", chosen).tobytes(), 1, len(columns), kind="I32")
        out = bench.compute(lib.mul_mat_id(bench.rest, experts, inputs, ids))
    want = [[dot(row, x) for row in part] for part, x in zip(rows, columns, strict=True)]
    expect(unpack(out, _ROWS), want,
           lambda i, j: _TOLERANCE * norm(rows[i][j]) * norm(columns[i]) + 1e-6)  # fmt: skip


def run_rows(lib: ProofKernels, case: KernelCase, buffer: int | None) -> None:
    """Rows taken out of a table, as token embeddings are."""
    data, chosen = make_weights(case.kind, _ROWS), [3, 0, 31]
    with Bench(lib, case.n_threads, buffer) as bench:
        table = bench.weight(case.kind, data, _WIDTH, _ROWS)
        ids = bench.input(array.array("i", chosen).tobytes(), len(chosen), kind="I32")
        out = bench.compute(lib.get_rows(bench.rest, table, ids))
    weights = lib.dequantize(case.kind, data, _WIDTH)
    want = [weights[i] for i in chosen]
    expect(unpack(out, _WIDTH), want, lambda i, j: 1e-5 * abs(want[i][j]))


def run_attention(lib: ProofKernels, case: KernelCase, buffer: int | None) -> None:
    """Fused attention over keys and values of one type: one query as in decode, then several."""
    n_rows = _KEYS * _HEADS
    per_row = _WIDTH // _HEAD
    raw = make_weights(case.kind, 2 * n_rows // per_row)
    half = len(raw) // 2
    keys = lib.dequantize(case.kind, raw[:half], _HEAD)
    values = lib.dequantize(case.kind, raw[half:], _HEAD)
    for n in (1, 40):
        queries = make_columns(n * _HEADS, _HEAD)
        logits = [[dot(q, k) for k in keys[(i // n) * _KEYS :][:_KEYS]]
                  for i, q in enumerate(queries)]  # fmt: skip
        scale = 2 / max(1e-9, *(abs(x) for row in logits for x in row))
        with Bench(lib, case.n_threads) as bench:
            cache = [bench.weight(case.kind, raw[i * half : (i + 1) * half], _HEAD, _KEYS, _HEADS)
                     for i in (0, 1)]  # fmt: skip
            query = bench.input(pack(queries), _HEAD, n, _HEADS)
            out = bench.compute(lib.attention(bench.rest, query, *cache, None, scale, 0.0, 0.0))
        want = [
            mix([math.exp(scale * x) for x in row], values[(i // n) * _KEYS :][:_KEYS])
            for i, row in enumerate(logits)
        ]
        # The library answers with heads innermost.
        got = unpack(out, _HEAD)
        got = [got[q * _HEADS + h] for h in range(_HEADS) for q in range(n)]
        most = max(abs(x) for row in values for x in row)
        expect(got, want, lambda _i, _j, most=most: 0.01 * most)  # type: ignore[misc]


def mix(weights: Row, rows: Sequence[Row]) -> Row:
    total = sum(weights)
    return [dot(weights, column) / total for column in zip(*rows, strict=True)]


def run_cast(lib: ProofKernels, case: KernelCase, buffer: int | None) -> None:
    """Numbers stored as a cache stores them."""
    columns = [[x / 127 for x in column] for column in make_columns(3)]
    with Bench(lib, case.n_threads) as bench:
        numbers = bench.input(pack(columns), _WIDTH, 3)
        out = bench.compute(lib.cast(bench.rest, numbers, GGML_TYPES[case.kind].id))
    # A step of four bits is an eighth of the largest number at most.
    expect(lib.dequantize(case.kind, out, _WIDTH), columns, lambda _i, _j: 0.13)


def run_floats(lib: ProofKernels, case: KernelCase, buffer: int | None) -> None:
    """The operations on plain numbers that every model uses, at a width with a rest."""
    width = 67
    a = [[x / 40 for x in column] for column in make_columns(4, 96)]
    b = [[x / 60 for x in column] for column in make_columns(5, 96)[:4]]
    a, b = [row[:width] for row in a], [row[:width] for row in b]
    with Bench(lib, case.n_threads) as bench:
        x, y = bench.input(pack(a), width, 4), bench.input(pack(b), width, 4)
        operands = {**dict.fromkeys(_BINARY, y), **dict.fromkeys(_SCALED, 1e-6), "scale": 0.5}
        others = [operands[case.op]] if case.op in operands else []
        out = bench.compute(lib.floats[case.op](bench.rest, x, *others))
    want = [_FLOATS[case.op](r, s) for r, s in zip(a, b, strict=True)]
    # gelu reads a table of half precision.
    expect(unpack(out, width), want, lambda i, j: 5e-3 * max(1.0, abs(want[i][j])))


def run_rope(lib: ProofKernels, case: KernelCase, buffer: int | None) -> None:
    """Rotation by position, neighbours (mode 0) or halves (mode 2) together."""
    positions = [0, 3, 70]
    for mode in (0, 2):
        columns = make_columns(len(positions) * _HEADS, _HEAD)
        with Bench(lib, case.n_threads) as bench:
            x = bench.input(pack(columns), _HEAD, _HEADS, len(positions))
            at = bench.input(array.array("i", positions).tobytes(), len(positions), kind="I32")
            out = bench.compute(lib.rope(bench.rest, x, at, _HEAD, mode))
        want = [rotate(c, positions[i // _HEADS], mode) for i, c in enumerate(columns)]
        expect(unpack(out, _HEAD), want, lambda _i, _j: 0.1)


def rotate(row: Row, position: int, mode: int) -> Row:
    """Rotary embedding (arXiv:2104.09864) with base 10000."""
    out, half = list(row), len(row) // 2
    for k in range(half):
        i, j = (k, k + half) if mode else (2 * k, 2 * k + 1)
        angle = position * 10000 ** (-2 * k / len(row))
        c, s = math.cos(angle), math.sin(angle)
        out[i], out[j] = row[i] * c - row[j] * s, row[i] * s + row[j] * c
    return out


def softmax(a: Row) -> Row:
    most = max(a)
    powers = [math.exp(x - most) for x in a]
    return [p / sum(powers) for p in powers]


def centre(a: Row) -> Row:
    mean = sum(a) / len(a)
    return [x - mean for x in a]


def silu(x: float) -> float:
    return x / (1 + math.exp(-x))


def gelu(x: float) -> float:
    return 0.5 * x * (1 + math.tanh(math.sqrt(2 / math.pi) * x * (1 + 0.044715 * x * x)))


_UNARY: dict[str, Callable[[Row], Row]] = {
    "soft_max": softmax,
    "silu": lambda a: [silu(x) for x in a],
    "gelu": lambda a: [gelu(x) for x in a],
    "gelu_erf": lambda a: [0.5 * x * (1 + math.erf(x / math.sqrt(2))) for x in a],
    "gelu_quick": lambda a: [x / (1 + math.exp(-1.702 * x)) for x in a],
    "sigmoid": lambda a: [1 / (1 + math.exp(-x)) for x in a],
    "tanh": lambda a: [math.tanh(x) for x in a],
    "relu": lambda a: [max(0.0, x) for x in a],
    "exp": lambda a: [math.exp(x) for x in a],
    "neg": lambda a: [-x for x in a],
    "sqr": lambda a: [x * x for x in a],
}
_BINARY: dict[str, Callable[[Row, Row], Row]] = {
    "add": lambda a, b: [x + y for x, y in zip(a, b, strict=True)],
    "sub": lambda a, b: [x - y for x, y in zip(a, b, strict=True)],
    "mul": lambda a, b: [x * y for x, y in zip(a, b, strict=True)],
    "swiglu_split": lambda a, b: [silu(x) * y for x, y in zip(a, b, strict=True)],
    "geglu_split": lambda a, b: [gelu(x) * y for x, y in zip(a, b, strict=True)],
}
_SCALED: dict[str, Callable[[Row], Row]] = {
    "scale": lambda a: [0.5 * x for x in a],
    "rms_norm": lambda a: [x / math.sqrt(dot(a, a) / len(a)) for x in a],
    "norm": lambda a: [x / math.sqrt(dot(centre(a), centre(a)) / len(a)) for x in centre(a)],
    "l2_norm": lambda a: [x / norm(a) for x in a],
}
_FLOATS: dict[str, Callable[[Row, Row], Row]] = {
    **{name: (lambda a, _, f=f: f(a)) for name, f in {**_UNARY, **_SCALED}.items()},  # type: ignore[misc]
    **_BINARY,
}
_RUN: dict[str, Callable[[ProofKernels, KernelCase, int | None], None]] = {
    "product": run_product,
    "experts": run_experts,
    "rows": run_rows,
    "attention": run_attention,
    "cast": run_cast,
    "rope": run_rope,
    **dict.fromkeys(_FLOATS, run_floats),
}


def list_cases(buffers: Sequence[str], n_threads: int) -> list[KernelCase]:
    """Every case, in a fixed order; `buffers` are the names of the extra buffer types."""
    counts = (1, n_threads)
    cases = [KernelCase(op, "", PLAIN, n) for op in (*_FLOATS, "rope") for n in counts]
    for kind in WEIGHT_TYPES:
        for buffer in (PLAIN, *buffers):
            cases += [KernelCase("product", kind, buffer, n) for n in counts]
            cases.append(KernelCase("experts", kind, buffer, n_threads))
        cases.append(KernelCase("rows", kind, PLAIN, n_threads))
    for kind in _KV_TYPES:
        cases.append(KernelCase("cast", kind, PLAIN, n_threads))
        cases += [KernelCase("attention", kind, PLAIN, n) for n in counts]
    return cases


def prove(
    folder: Path, n_threads: int, first: int, hopeless: Mapping[str, str]
) -> Iterator[dict[str, Any]]:
    """Yield findings: `{"at", "of", "case"}` before a case, `{"wrong"}` after one that failed,
    `{"not_offered"}` after one that ggml has no kernel for, `{"end"}` when all are done.
    """
    lib = ProofKernels(folder)
    buffers = {lib.buffer_name(b).decode("ascii", "replace"): b for b in lib.repack_buffers()}
    cases = list_cases(list(buffers), n_threads)
    for i, case in enumerate(cases[first:], first):
        yield {"at": i, "of": len(cases), "case": list(case)}
        try:
            if case.buffer in hopeless:
                raise Wrong(hopeless[case.buffer])
            _RUN[case.op](lib, case, buffers.get(case.buffer))
        except Wrong as error:
            yield {"wrong": str(error)}
        except NotOffered:
            yield {"not_offered": True}
    yield {"end": True}


def main(argv: Sequence[str]) -> None:
    folder, n_threads, first, hopeless = argv
    for finding in prove(Path(folder), int(n_threads), int(first), json.loads(hopeless)):
        print(json.dumps(finding), flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
