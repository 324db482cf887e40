"""A graph allocator as the engine's: how many bytes a chain of operations needs at its worst.

A value lives from its operation to the last one that reads it; later ones then take its place, the
best-fitting hole first. Source: ggml/src/ggml-alloc.c (ggml_dyn_tallocr_alloc,
ggml_gallocr_allocate_node, ggml_gallocr_alloc_graph_impl).
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

# Alignment of CPU buffers: TENSOR_ALIGNMENT in ggml/src/ggml-impl.h.
_ALIGNMENT = 64


class Arena:
    """Best fit over the gaps between what is taken, else behind all of it."""

    def __init__(self) -> None:
        self._taken: dict[int, int] = {}  # offset → size
        self.peak = 0

    def take(self, size: int) -> int:
        """Offset of `size` bytes."""
        if not size:
            return 0
        size, end = _align(size), 0
        gaps = []
        for offset in sorted(self._taken):
            if offset - end >= size:
                gaps.append((offset - end, -end))
            end = offset + self._taken[offset]
        offset = -min(gaps)[1] if gaps else end
        self._taken[offset] = size
        self.peak = max(self.peak, offset + size)
        return offset

    def give_back(self, offset: int, size: int) -> None:
        """Return bytes got from `take`."""
        if size:
            del self._taken[offset]


def _align(size: int) -> int:
    return -(-size // _ALIGNMENT) * _ALIGNMENT


@dataclass(frozen=True)
class GraphBytes:
    """`reserved` bytes of address space, of which `resident` are ever written."""

    reserved: int
    resident: int


@dataclass
class _Value:
    size: int
    written: int
    sources: tuple[int, ...] = ()
    view_of: int | None = None  # the value whose bytes these are, itself never a view
    in_place: bool = False
    offset: int | None = None
    n_readers: int = 0
    n_views: int = 0
    operation: bool = True


@dataclass
class ComputeGraph:
    """Operations in the order they run. Weights and caches live elsewhere and are left out."""

    _values: list[_Value] = field(default_factory=list)

    def input(self, size: int, *, written: int | None = None) -> int:
        """A value that is there before the first operation; `written` bytes of it are touched."""
        return self._add(_Value(size, size if written is None else written, operation=False))

    def run(
        self, size: int, *sources: int, in_place: bool = False, written: int | None = None
    ) -> int:
        """An operation's result. `in_place`: it may take over a source of the same layout."""
        touched = size if written is None else written
        return self._add(_Value(size, touched, sources, in_place=in_place))

    def view(self, source: int) -> int:
        root = self._values[source].view_of
        return self._add(_Value(0, 0, (source,), view_of=source if root is None else root))

    def _add(self, value: _Value) -> int:
        self._values.append(value)
        return len(self._values) - 1

    def measure(self) -> GraphBytes:
        """Bytes of the buffer that holds the whole graph. Runs once on a graph."""
        arena, values = Arena(), self._values
        self._written: list[tuple[int, int]] = []
        for value in values:
            if not value.operation:
                self._take(value, arena)
        for value in values:
            if value.view_of is not None:
                values[value.view_of].n_views += 1
            for source in value.sources:
                values[source].n_readers += 1
        for value in values:
            if value.operation and value.view_of is None:
                self._place(value, arena)
            self._release(value.sources, arena)
        return GraphBytes(arena.peak, _union_length(self._written))

    def _take(self, value: _Value, arena: Arena) -> None:
        value.offset = arena.take(value.size)
        self._written.append((value.offset, value.offset + value.written))

    def _place(self, value: _Value, arena: Arena) -> None:
        for index in value.sources if value.in_place else ():
            source = self._values[index]
            # A view is never taken over, even where its bytes would be free: the engine asks
            # whether the source itself owns memory.
            if source.offset is None or source.n_readers != 1 or source.n_views:
                continue
            if source.size == value.size:
                value.offset, source.offset = source.offset, None
                return
        self._take(value, arena)

    def _release(self, sources: Sequence[int], arena: Arena) -> None:
        for index in sources:
            source = self._values[index]
            source.n_readers -= 1
            if source.n_readers or source.n_views:
                continue
            if source.view_of is None:
                self._free(source, arena)
                continue
            owner = self._values[source.view_of]
            owner.n_views -= 1
            if not owner.n_views and not owner.n_readers:
                self._free(owner, arena)

    @staticmethod
    def _free(value: _Value, arena: Arena) -> None:
        if value.offset is not None:
            arena.give_back(value.offset, value.size)
            value.offset = None


def _union_length(spans: Iterable[tuple[int, int]]) -> int:
    total = reached = 0
    for begin, end in sorted(spans):
        total += max(0, end - max(begin, reached))
        reached = max(reached, end)
    return total
