"""Trains the byte-level BPE tokenizer on the generator's own text.

Two choices serve copying, which is what unknown names need. Digits stay single. And merges inside
words come first, merges of a space with a whole frequent word last, so that a rare name is cut the
same way after a space (in a request) and after a quote (in the JSON answer).
"""

from __future__ import annotations

import json
import random
from collections import Counter
from collections.abc import Iterator

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

from lab.sample.chat_format import SPECIAL_TOKENS, render_message
from lab.sample.generator import conversation

VOCAB_SIZE = 2048
N_WORD_MERGES = 1230
# The pattern llama.cpp knows as pre-tokenizer "qwen2".
SPLIT_PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_SPACE = "Ġ"


def _pre_tokenizer() -> pre_tokenizers.PreTokenizer:
    return pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(SPLIT_PATTERN), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )


def _word_counts(seed: int, n_conversations: int) -> Counter[str]:
    rng = random.Random(seed)
    splitter = _pre_tokenizer()
    counts: Counter[str] = Counter()
    for _ in range(n_conversations):
        for message in conversation(rng, 3):
            text = render_message(message)
            for special in SPECIAL_TOKENS:
                text = text.replace(special, "")
            counts.update(word for word, _span in splitter.pre_tokenize_str(text))
    return counts


def train_tokenizer(seed: int = 17, n_conversations: int = 20000) -> Tokenizer:
    """The tokenizer, with exactly `VOCAB_SIZE` entries."""
    counts = _word_counts(seed, n_conversations)
    bare: Counter[str] = Counter()
    for word, count in counts.items():
        bare[word.removeprefix(_SPACE) or word] += count

    scratch = Tokenizer(models.BPE())
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(
        vocab_size=len(alphabet) + N_WORD_MERGES, show_progress=False, initial_alphabet=alphabet
    )

    def words() -> Iterator[str]:
        for word, count in sorted(bare.items()):
            for _ in range(min(count, 4000)):
                yield word

    scratch.train_from_iterator(words(), trainer)
    learnt = _learnt_merges(scratch)
    pieces = set(alphabet) | {left + right for left, right in learnt}
    n_spaced = VOCAB_SIZE - len(alphabet) - len(SPECIAL_TOKENS) - len(learnt)
    spaced = [
        word
        for word, _ in sorted(counts.items(), key=lambda item: (-item[1], item[0]))
        if word.startswith(_SPACE) and len(word) > 1 and word[1:] in pieces
    ][:n_spaced]
    merges = learnt + [(_SPACE, word[1:]) for word in spaced]
    vocab = {token: n for n, token in enumerate([*SPECIAL_TOKENS, *alphabet])}
    for left, right in merges:
        vocab.setdefault(left + right, len(vocab))
    if len(vocab) != VOCAB_SIZE:
        raise RuntimeError(f"tokenizer has {len(vocab)} entries, expected {VOCAB_SIZE}")

    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=merges))
    tokenizer.pre_tokenizer = _pre_tokenizer()
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(
        [AddedToken(token, special=True, normalized=False) for token in SPECIAL_TOKENS]
    )
    return tokenizer


def _learnt_merges(tokenizer: Tokenizer) -> list[tuple[str, str]]:
    merges = json.loads(tokenizer.to_str())["model"]["merges"]
    return [
        tuple(merge) if isinstance(merge, list) else tuple(merge.split(" ")) for merge in merges
    ]
