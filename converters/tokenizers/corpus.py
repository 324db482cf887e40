"""The torture corpus: texts on which tokenizers differ.

Fixed texts (scripts, digits, whitespace, emoji, code, …) and seeded random ones, the same on every
machine. `torture_corpus` adds texts with the checkpoint's own special tokens written in them.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterator, Sequence

_WORDS = (
    "Hello", " world", "don't", "WE'LL", "it's", "I'VE", "y'all", "O'Neill", "l'été", "naïve",
    "straße", "ΑΒΓ", "αβγ", "Привет", " мир", "ПриветМир", "こんにちは", "世界", "안녕", "สวัสดี",
    "नमस्ते", "مرحبا", "שלום", "ក្រុង", "𝔘𝔫𝔦", "ﬁne", "x86_64", "3.14", "1,000,000", "0xFF",
    "foo_bar", "fooBar", "HTTPServer", "a", "I", "ǅ", "ß", "İ", "ı",
)  # fmt: skip
_GLUE = (
    " ", "  ", "   ", "\n", "\n\n", "\r\n", "\t", " \n", "\n ", "", "", "", ".", ",", "!", "?",
    "...", "-", "--", "_", "'", '"', "(", ")", "[", "]", "{", "}", "/", "\\", "@", "#", "$", "%",
    "&", "*", "+", "=", "<", ">", "|", "~", "`", ":", ";", "\u00a0", "\u3000", "\u200b", "\u2028",
)  # fmt: skip
_EMOJI = ("🙂", "👍🏽", "👩‍👩‍👧‍👦", "🏳️‍🌈", "🇩🇪", "1️⃣", "❤️", "☃", "🦙")
_CONTRACTIONS = ("'s", "'t", "'re", "'ve", "'m", "'ll", "'d", "'S", "'RE", "'x", "’s")
# Blocks from which random characters are drawn; surrogates are no text.
_BLOCKS = (
    (0x20, 0x7E), (0xA1, 0xFF), (0x100, 0x24F), (0x300, 0x36F), (0x370, 0x3FF), (0x400, 0x52F),
    (0x590, 0x5FF), (0x600, 0x6FF), (0x900, 0x97F), (0xE00, 0xE7F), (0x1100, 0x11FF),
    (0x2000, 0x206F), (0x20A0, 0x20CF), (0x2100, 0x22FF), (0x3040, 0x30FF), (0x4E00, 0x9FFF),
    (0xAC00, 0xD7A3), (0xFF01, 0xFFEE), (0x1F300, 0x1F6FF), (0x10000, 0x1007F),
)  # fmt: skip

FIXED: tuple[str, ...] = (
    "",
    # Whitespace and newlines, alone and around words.
    " ", "  ", "   ", "    ", "\t", "\t\t", "\n", "\n\n", "\n\n\n", "\r", "\r\n", "\r\n\r\n",
    " \n", "\n ", "  \n  ", "\n  \n", "\t\n", "\n\t", " \t \n \r\n x", "a\u00a0b", "a\u3000b",
    "a\u2003b", "a\u200bb", "a\u2028b", "\ufeffa", "a\x0bb", "a\x0cb", "a\x85b", "x ", "x  ",
    "x   ", " x", "  x", "   x", "    x", "x\n", "x\n\n", "\nx", "\n\nx", "x \n", "x\n y",
    "x\n  y", "x\n\n  y", "a b  c   d    e     f", "def f():\n    return 1\n\n\n    x\n",
    "\tif x:\n\t\treturn y\n", "trailing   ", "tab\tsep\tvalues\n1\t2\t3\n",
    # Digits.
    "0", "12", "123", "1234", "12345", "123456", "1234567", "12345678", "123456789",
    "1 2 3", "1.5", "1,000", "1,000,000.50", "-1", "+1", "1e-5", "0x1F", "1st 2nd 3rd",
    "2026-11-22", "12:34:56", "192.168.0.1", "½ ⅓ ¼", "①②③", "Ⅳ Ⅻ", "٣٤٥", "१२३४", "２０２６",
    "x1y22z333", "a1b2c3", "²³¹", "100%", "$1,234.56", "€9.99", "10⁻³", "007", "3 33 333 3333",
    # Contractions and apostrophes.
    "I'm you're he's we've they'll I'd can't", "I'M YOU'RE HE'S WE'VE THEY'LL I'D CAN'T",
    "'s 't 're 've 'm 'll 'd", "'S'T'RE", "rock 'n' roll", "the dogs' bowls", "''", "'''", "'a",
    "don’t it’s we’ll", "O'Brien's", "y'all'd've", "'tis", "he'sx", "a'lL we'Ve",
    # Punctuation runs.
    "!", "!!", "!!!!!!", "...", "....", "?!?!", "---", "-----", "======", "*** ***", "~~~", "```",
    "(a)", "[b]", "{c}", "<d>", "«e»", "“f”", "‘g’", "„h“", "…", "–—―", "a.b.c", "a,b,c", "a-b-c",
    "a_b_c", "a/b/c", "\\\\", "^^", "|x|", "#tag @user", ";:,.",
    "!\"#$%&'()*+,-./:;<=>?@[\\]^_`{|}~",
    " !", " ?x", "x!y", "...x", "x...", ". . .", "!\n", "!\n\n", "?\r\n", "/*\n*/", "//\n",
    # Scripts.
    "Größe und Maß, Ärger über Öl", "Élève garçon où naïf cœur", "El niño comió ¿qué? ¡así!",
    "Zażółć gęślą jaźń", "Příliš žluťoučký kůň", "İstanbul ıssız ğüşiöç", "Cửa Việt Nam đẹp",
    "Ελληνικά γράμματα ΜΕΓΑΛΑ μικρά", "Съешь ещё этих мягких французских булок", 
    "НЕЩО на Български",
    "Україна їжак ґанок", "შეგობარო", "Հայերեն բառեր", "עברית שלום עולם", "العربية مرحبا بالعالم",
    "فارسی می‌خواهم", "اُردو", "हिन्दी में नमस्ते दुनिया", "বাংলা ভাষা", "தமிழ் மொழி", "తెలుగు",
    "ಕನ್ನಡ", "മലയാളം", "සිංහල", "ภาษาไทยไม่เว้นวรรค", "ລາວ", "မြန်မာ", "ភាសាខ្មែរ", "བོད་སྐད",
    "አማርኛ", "ᏣᎳᎩ", "日本語の文章です。", "カタカナとひらがな", "中文句子，标点。", "繁體中文字",
    "한국어 문장입니다.", "ㅋㅋㅋ ㅎㅎ", "混ぜ書きmix語123", "русскийEnglish中文",
    "ＦＵＬＬｗｉｄｔｈ",
    "𠀀𠀁", "𝒜𝓁𝓅𝒽𝒶", "ᚠᚢᚦ", "ꙮ", "ǆ ǅ Ǆ", "ﬀ ﬁ ﬂ", "ſ", "ẞ ß",
    # Combining marks, composed and decomposed.
    "e\u0301", "é", "A\u030a Å Å", "n\u0303o", "o\u0308\u0304", "u\u0308ber", 
    "Z\u0351\u036b\u0343a\u0363",
    "\u0301alone", "क्षि", "각 각", "ệ e\u0323\u0302", "ñ n\u0303 ñ",
    # Emoji and symbols.
    "🙂", "🙂🙂🙂", "👍🏽", "👩‍👩‍👧‍👦", "👨‍💻 codes", "🏳️‍🌈", "🇩🇪🇫🇷",
    "1️⃣2️⃣", "❤️ ❤", "☃☂☀", "a🙂b", "🙂 a", "😶‍🌫️",
    "🚀 (normal) ✅", "🦙.cpp", "♠♥♦♣", "→←↑↓", "∀x∈ℝ: x²≥0", "∑∫√∞", "©®™", "°C µm Ω", "№ §",
    "┌─┐│└┘", "█▓▒░", "•◦▪", "★☆",
    # Code, markup, addresses.
    "for (int i = 0; i < 10; ++i) { x[i] += i; }", "SELECT * FROM t WHERE a='b' AND c<>1;",
    "<div class=\"a\">text</div>", "{\"key\": [1, 2.5, null, true], \"k2\": \"v\\n\"}",
    "https://example.com/a/b?c=d&e=f#g", "user.name+tag@example.co.uk", "C:\\Users\\x\\y.txt",
    "/usr/bin/env python3", "git commit -m 'msg' && git push", "\\frac{a}{b} $x_1^2$",
    "a=>b; c!==d",
    "#!/bin/sh\nset -e\n", "```python\nprint('hi')\n```", "| a | b |\n|---|---|\n",
    "- item\n  - sub\n",
    "camelCaseWord PascalCase snake_case kebab-case SCREAMING_CASE", "std::vector<std::string>&",
    "fn main() -> Result<(), Box<dyn Error>> {}", "lambda x: x**2", "&amp; &lt; &#39;", "%20%2F",
    "\x1b[31mred\x1b[0m", "\x00", "a\x00b", "\x7f", "\x01\x02\x03", "\ufffd",
    "\uffff", "\U0010ffff",
    # Long runs.
    "a" * 100, "ab" * 60, " " * 50, "\n" * 20, "\t" * 20, "0" * 60, "=" * 80, "-" * 33, "。" * 12,
    "あ" * 30, "🙂" * 12, "é" * 20, "x " * 40, "word " * 30, "A" * 40, "'" * 15, "\u00a0" * 8,
    " \n" * 10, "1a" * 20, "ha" * 25, "．" * 5,
    # Sentences.
    "The quick brown fox jumps over the lazy dog.", "Dim the kitchen lights to 30 percent, please!",
    "How are you 😁 ?我想在apple工作1314151天～", "I've been 'told he's there, 'RE you sure?",
    "Mr. Smith paid $3.50 (USD) on 01/02/2003 at 4:05 p.m.", 
    "Wait... what?! No -- never; \"yes\": 'no'.",
)  # fmt: skip


def random_texts(n: int, seed: int = 0) -> Iterator[str]:
    """Seeded texts: words, glue, emoji and contractions in any order, or characters of a block."""
    rng = random.Random(seed)
    for number in range(n):
        length = rng.randint(1, 12)
        if number % 3 == 0:
            blocks = [rng.choice(_BLOCKS) for _ in range(length)]
            yield "".join(chr(rng.randint(low, high)) for low, high in blocks)
            continue
        pools = (_WORDS, _GLUE, _WORDS, _GLUE, _EMOJI, _CONTRACTIONS)
        parts = [rng.choice(rng.choice(pools)) for _ in range(length)]
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
