"""A language model as TFLite signatures (`decode`, `prefill_128` …): tokens in, logits out, and the
tokens whose KV it holds. Knows nothing of threads, text or sampling.

Inputs as litert-torch exports them: `tokens` [1, n], `input_pos` [n], `mask` [1, 1, n, n_ctx]
(added to the scores: 0 or very negative; or bool), `kv_cache_k_i` [1, heads, n_ctx, dim] and
`kv_cache_v_i` [1, heads, dim, n_ctx]; memory without positions is `kv_cache_c_i`, of any shape.
Prefill gives no logits, so a prompt's last token goes through decode.
"""

import contextlib
import mmap
import re
import time
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from boardfit.edge.engines.prefix_cache import Fill, SavableCache
from boardfit.edge.engines.step_engine import Decoder, Runner
from boardfit.edge.errors import IntegrityError, UnsupportedModelError

_DECODE = "decode"
_PREFILL = re.compile(r"^prefill(_\d+)?$")
_KV = re.compile(r"^kv_cache_([kv])_(\d+)$")
_KNOWN = ("tokens", "input_pos", "mask")
# A graph that can be cancelled looks up between nodes, and a watcher wakes every 10 ms: a node may
# take this share of the budget.
_NODE_SHARE = 0.5
#: Until measured: a step of n tokens is taken to cost as much as 1 + n/8 single ones (decode is
#: bound by memory, prefill by arithmetic).
_TOKENS_PER_DECODE = 8


def is_kv(name: str) -> bool:
    """Whether a tensor of this name is a KV cache, which has a place per position."""
    return _KV.match(name) is not None


def state_names(inputs: Iterable[str], outputs: Iterable[str]) -> list[str]:
    """Names of memory without positions, sorted: inputs and outputs of one name (a convolution's
    last inputs, in LFM2), replaced as a whole by each step.
    """
    return sorted(name for name in set(inputs) & set(outputs) if not is_kv(name))


def position_index(name: str, view: Any, n_ctx: int, first: int, last: int) -> tuple[Any, ...]:
    """An index of a KV tensor's positions from `first` to before `last`. They are along the axis as
    long as the context; where two are, the layout of the exporter decides (values lie transposed).
    """
    is_last = view.shape[-1] == n_ctx and (
        view.shape[-2] != n_ctx or not name.startswith("kv_cache_k_")
    )
    positions = slice(first, last)
    return (..., positions) if is_last else (..., positions, slice(None))


class StepChooser:
    """Which compiled step takes the next tokens of a prompt: the fastest by what each took."""

    def __init__(self, lengths: Sequence[int], *, largest: int | None = None) -> None:
        self._lengths = tuple(sorted({n for n in lengths if largest is None or n <= largest}))
        self._seconds: dict[int, float] = {}

    def measured(self, length: int, seconds: float) -> None:
        """Take in the seconds of a step. The fastest counts: a busy machine slows one down."""
        self._seconds[length] = min(seconds, self._seconds.get(length, seconds))

    def expected_s(self, length: int) -> float:
        """Seconds that a step of `length` is expected to take."""
        if length in self._seconds:
            return self._seconds[length]
        unit = self._seconds.get(1, 0.0)
        for known, seconds in self._seconds.items():
            unit = unit or seconds / (1 + known / _TOKENS_PER_DECODE)
        return (unit or 1.0) * (1 + length / _TOKENS_PER_DECODE)

    def next_length(
        self, n_left: int, room: int, *, budget_s: float | None = None, whole: bool = False
    ) -> int:
        """Length of the step to run now, 1 for a single token. `n_left` tokens of the prompt
        remain, `room` positions are free: a step writes all of its positions. With `budget_s` a
        step may take no longer than that, where there is a choice. `whole`: only full steps.
        """
        fits = [n for n in self._lengths if n <= room]
        if budget_s is not None:
            known = [n for n in fits if n in self._seconds]
            quick = [n for n in known if self._seconds[n] <= budget_s]
            larger = [n for n in fits if n not in self._seconds and n > max(known, default=0)]
            # One untried length more, if by the speed of those tried it stays within the budget.
            if larger and (not known or self.expected_s(larger[0]) <= budget_s):
                quick.append(larger[0])
            fits = quick or fits[:1]
        full = [n for n in fits if n <= n_left]
        partial = [] if whole else [n for n in fits if n > n_left][:1]
        return min([1, *full, *partial], key=lambda n: (self.expected_s(n) / min(n, n_left), -n))


class SignatureGraph(Runner):
    """Compiled signatures over tensors that numpy can see, with one KV cache for all."""

    inputs: dict[str, dict[str, Any]]
    outputs: dict[str, dict[str, Any]]

    def run(self, signature: str, start: int, n: int) -> bool:
        """Run a step that writes the `n` positions from `start` on. False if cancelled on the way:
        only of these some are written; memory without positions is as before.
        """
        raise NotImplementedError

    def kv_replaced(self) -> None:
        """The KV cache of `inputs["decode"]` was written by the caller."""


class SignatureDecoder(SavableCache, Decoder):
    """`cached` are the tokens that the KV cache holds, in order."""

    def __init__(
        self,
        graph: SignatureGraph,
        name: str,
        prefill_chunk: int | None = None,
        *,
        n_nodes: float = 1,
    ) -> None:
        """`n_nodes` is a step over its longest node. Raises UnsupportedModelError."""
        import numpy as np

        self._np = np
        self.graph: SignatureGraph = graph
        self._nodes_s = _NODE_SHARE * n_nodes if graph.can_cancel else 1.0
        self.cached: list[int] = []
        _check_signatures(graph, name)
        decode = graph.inputs[_DECODE]
        self.n_ctx = int(decode["mask"].shape[-1])
        self.n_logits = int(graph.outputs[_DECODE]["logits"].shape[-1])
        self._kv = {key: view for key, view in decode.items() if is_kv(key)}
        self._prefills = {
            int(inputs["tokens"].shape[-1]): key
            for key, inputs in graph.inputs.items()
            if _PREFILL.match(key)
        }
        self.lengths = tuple(sorted(self._prefills))
        self.steps = StepChooser(tuple(self._prefills), largest=prefill_chunk)
        self._positions = np.arange(self.n_ctx, dtype=np.int32)
        self._allowed, self._denied = _mask_values(np, decode["mask"].dtype, name)
        for signature in (_DECODE, *self._prefills.values()):
            graph.inputs[signature]["mask"][...] = self._denied
        # Flat views: setting an element of one is what a token costs in Python.
        self._token, self._position, self._mask = (decode[key].reshape(-1) for key in _KNOWN)
        self._states = [decode[key] for key in state_names(decode, graph.outputs[_DECODE])]
        self._n_open = 0  # positions that decode's mask allows
        self.logits = graph.outputs[_DECODE]["logits"].reshape(-1)

    @property
    def kv_type(self) -> str:
        """Element types of the KV cache, as `f32`."""
        names = {"float32": "f32", "float16": "f16", "int8": "i8"}
        types = {str(view.dtype) for view in self._kv.values()}
        return "/".join(sorted(names.get(kind, kind) for kind in types))

    def prefill(self, tokens: Sequence[int], *, budget_s: float | None) -> bool:
        """As the base class. `budget_s` is for a step, or a node where steps can be cancelled."""
        done = len(self.cached)
        step_s = None if budget_s is None else budget_s * self._nodes_s
        n = self.steps.next_length(
            len(tokens), self.n_ctx - done, budget_s=step_s, whole=bool(self._states)
        )
        started = time.monotonic()
        if n == 1:
            ok = self.decode(tokens[0])
        else:
            taken = tokens[:n]
            ok = self._prefill(self._prefills[n], n, done, taken)
        if ok:
            self.steps.measured(n, time.monotonic() - started)
        return ok

    def _prefill(self, signature: str, n: int, done: int, tokens: Sequence[int]) -> bool:
        inputs, positions = self.graph.inputs[signature], self._positions
        ids = inputs["tokens"].reshape(-1)
        ids[: len(tokens)] = tokens
        # What is left over of a step computes something too: it must be finite, and is overwritten
        # before anything may look at it.
        ids[len(tokens) :] = 0
        inputs["input_pos"][...] = positions[done : done + n]
        visible = positions[None, :] <= positions[done : done + n, None]
        inputs["mask"][...] = self._np.where(visible, self._allowed, self._denied)
        if not self.graph.run(signature, done, n):
            return False
        self.cached.extend(tokens)
        return True

    def decode(self, token: int) -> bool:
        """Evaluate one token; `logits` are those after it. False if cancelled."""
        done = len(self.cached)
        self._token[0] = token
        self._position[0] = done
        if self._n_open == done:  # the usual case: one more position may be seen
            self._mask[done] = self._allowed
        else:
            self._mask[self._n_open : done + 1] = self._allowed
            self._mask[done + 1 : self._n_open] = self._denied
        self._n_open = done + 1
        if not self.graph.run(_DECODE, done, 1):
            return False
        self.cached.append(token)
        return True

    # ---- cache --------------------------------------------------------------------------------

    def can_cut(self, keep: int) -> bool:
        """Memory without positions has no past."""
        return not self._states or keep == len(self.cached)

    def truncate(self, keep: int) -> None:
        """What lies behind is masked, and overwritten. Memory without positions starts over."""
        if self._states and keep < len(self.cached):
            keep = 0
            for view in self._states:
                view[...] = 0
        del self.cached[keep:]

    @contextlib.contextmanager
    def saving(self, keep: int, folder: Path) -> Iterator[tuple[int, Fill]]:
        """The used part of every KV tensor in order of name."""
        if not self.can_cut(keep):
            raise UnsupportedModelError(
                f"this model's memory cannot be cut to its first {keep} tokens"
            )
        views = self._kv_slices(keep)

        def fill(state: mmap.mmap) -> int:
            done = 0
            for view in views:
                target = self._np.frombuffer(state, view.dtype, view.size, done)
                target.reshape(view.shape)[...] = view
                done += view.nbytes
            return done

        yield sum(view.nbytes for view in views), fill

    def load(self, state: mmap.mmap, tokens: Sequence[int], path: Path) -> None:
        """Inverse of `saving`. Raises IntegrityError for a state of another size."""
        self.truncate(0)
        views = self._kv_slices(len(tokens))
        if sum(view.nbytes for view in views) != len(state):
            raise IntegrityError(f"{path}: its state has another size than this model's")
        done = 0
        for view in views:
            source = self._np.frombuffer(state, view.dtype, view.size, done)
            view[...] = source.reshape(view.shape)
            done += view.nbytes
        self.graph.kv_replaced()
        self.cached = list(tokens)

    def _kv_slices(self, n_tokens: int) -> list[Any]:
        """The first `n_tokens` positions of every KV tensor, by name, and all other memory."""
        slices = [
            view[position_index(key, view, self.n_ctx, 0, n_tokens)]
            for key, view in sorted(self._kv.items())
        ]
        return slices + self._states


def _check_signatures(graph: SignatureGraph, name: str) -> None:
    """Raise UnsupportedModelError, naming what is wrong, unless `graph` is a language model's."""
    known = ", ".join(graph.inputs) or "none"
    if _DECODE not in graph.inputs or "logits" not in graph.outputs[_DECODE]:
        raise UnsupportedModelError(
            f"{name}: no signature decode with logits, so it is not a language model that this "
            f"engine knows; its signatures: {known}",
            next_step="edge bench measures any network",
        )
    for signature in (_DECODE, *filter(_PREFILL.match, graph.inputs)):
        inputs = graph.inputs[signature]
        missing = [key for key in _KNOWN if key not in inputs]
        memory = state_names(inputs, graph.outputs[signature])
        strange = [k for k in inputs if k not in _KNOWN and not is_kv(k) and k not in memory]
        if missing or strange:
            raise _not_a_decoder(
                f"{name}: signature {signature} "
                + (f"lacks {', '.join(missing)}" if missing else f"wants {', '.join(strange)}")
            )
        n_ctx = graph.inputs[_DECODE]["mask"].shape[-1]
        n = inputs["tokens"].size
        if inputs["input_pos"].size != n or inputs["mask"].shape[-2:] != (n, n_ctx):
            raise _not_a_decoder(
                f"{name}: signature {signature} takes {n} tokens with {inputs['input_pos'].size} "
                f"positions and a mask of {inputs['mask'].shape}"
            )
        _check_kv(graph, signature, n_ctx, name)
    logits = graph.outputs[_DECODE]["logits"]
    if graph.inputs[_DECODE]["tokens"].size != 1 or str(logits.dtype) != "float32":
        raise _not_a_decoder(
            f"{name}: signature decode takes {graph.inputs[_DECODE]['tokens'].size} tokens and "
            f"gives logits of {logits.dtype}"
        )


def _check_kv(graph: SignatureGraph, signature: str, n_ctx: int, name: str) -> None:
    """Every signature has the same memory; KV tensors are as long as the context."""
    memory = [state_names(graph.inputs[key], graph.outputs[key]) for key in (_DECODE, signature)]
    if memory[0] != memory[1]:
        raise _not_a_decoder(f"{name}: signature {signature} has memory of its own")
    wanted = {k: v.shape for k, v in graph.inputs[_DECODE].items() if is_kv(k)}
    for views in (graph.inputs[signature], graph.outputs[signature]):
        found = {k: v.shape for k, v in views.items() if is_kv(k)}
        if found != wanted or not wanted:
            raise _not_a_decoder(f"{name}: signature {signature} has KV tensors of its own")
    short = [f"{k} {shape}" for k, shape in wanted.items() if n_ctx not in shape[-2:]]
    if short:
        raise _not_a_decoder(
            f"{name}: {short[0]} is not as long as the context of {n_ctx} (a ring buffer?)"
        )


def _not_a_decoder(reason: str) -> UnsupportedModelError:
    return UnsupportedModelError(
        f"{reason}, which is not how a decoder-only text model is exported",
        next_step="build it as GGUF: edge build MODEL --format gguf",
    )


def _mask_values(np: Any, dtype: Any, name: str) -> tuple[Any, Any]:
    """What the mask holds where a position may be seen, and where not."""
    if dtype == np.bool_:
        return np.True_, np.False_
    if np.issubdtype(dtype, np.floating):
        # Not -inf: a row of nothing else would become NaN (LiteRT-LM's value too).
        return dtype.type(0), dtype.type(-0.7 * float(np.finfo(dtype).max))
    raise UnsupportedModelError(f"{name}: an attention mask of type {dtype}")
