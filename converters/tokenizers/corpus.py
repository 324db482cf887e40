"""The torture corpus: texts on which tokenizers differ, the same on every machine."""

import itertools
import random
from collections.abc import Iterator, Sequence

from boardfit.device_profiles.toml_parser import load_toml

_TABLE = load_toml("boardfit.converters.tokenizers", "corpus.toml")
_POOLS = _TABLE["pools"]
FIXED: tuple[str, ...] = tuple(
    entry if isinstance(entry, str) else entry[0] * entry[1]
    for entry in itertools.chain.from_iterable(_TABLE["fixed"].values())
)


def random_texts(n: int, seed: int = 0) -> Iterator[str]:
    """Seeded texts: words, glue, emoji and contractions in any order, or characters of a block."""
    rng = random.Random(seed)
    for number in range(n):
        length = rng.randint(1, 12)
        if number % 3 == 0:
            blocks = [rng.choice(_POOLS["blocks"]) for _ in range(length)]
            yield "".join(chr(rng.randint(low, high)) for low, high in blocks)
            continue
        names = ("words", "glue", "words", "glue", "emoji", "contractions")
        parts = [rng.choice(_POOLS[rng.choice(names)]) for _ in range(length)]
        if number % 3 == 2:
            parts.insert(rng.randrange(length), str(rng.randint(0, 10 ** rng.randint(1, 9))))
        yield "".join(parts)


def special_texts(special: Sequence[str], *, limit: int = 12) -> list[str]:
    """Texts with special tokens written in them: alone, glued, spaced, doubled, cut short."""
    texts = []
    for token in special[:limit]:
        texts += [
            token, token * 2, f"{token}Hello", f"Hello{token}", f"a{token}b", f"a {token} b",
            f" {token}", f"{token} ", f"{token}\n", f"{token}\nx\n{token}", f"{token}  x",
            f"{token}123", f"{token}'s", token[:-1], token[1:],
        ]  # fmt: skip
    texts += [f"{a}x{b}" for a, b in itertools.pairwise(special[:limit])]
    return texts


def torture_corpus(special: Sequence[str] = (), *, n_random: int = 150, seed: int = 0) -> list[str]:
    """All texts, without repeats, in a fixed order: fixed, random, then with special tokens."""
    texts = (*FIXED, *random_texts(n_random, seed), *special_texts(special))
    return list(dict.fromkeys(texts))
