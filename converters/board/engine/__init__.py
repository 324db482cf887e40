"""The engine for the board, compiled on the host: wheels and static tools for arm64.

A board that compiles llama-cpp-python itself works for an hour, and one that is given a wheel for
another core dies of SIGILL. So the host compiles once: one wheel that carries a kernel library per
Arm generation and loads the best that the core can run, cut to what is needed, tagged by the
symbols it really asks for, the same bytes from the same inputs, cached.

    wheel = build_wheel()                       # every variant, chosen when the board loads it
    wheel = build_wheel("armv8.2-dotprod")      # one variant: smaller, and fatal on an older core
    tools = build_tools("armv8.0")              # static llama-bench and llama-completion: phones
"""

from boardfit.converters.board.engine.build import build_tools, build_wheel
from boardfit.converters.board.engine.store import BuiltEngine, find_engines
from boardfit.converters.board.engine.variants import ALL_VARIANTS, SINGLE_VARIANTS, Variant

__all__ = [
    "ALL_VARIANTS",
    "SINGLE_VARIANTS",
    "BuiltEngine",
    "Variant",
    "build_tools",
    "build_wheel",
    "find_engines",
]
