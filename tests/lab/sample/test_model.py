"""The shipped files: small, complete, of the documented shape, and consistent with the code."""

from __future__ import annotations

import json
import re
import struct

import pytest

from boardfit.converters.sample import MODEL_DIR
from lab.sample import generator, results
from lab.sample.card import card_text
from lab.sample.chat_format import CHAT_TEMPLATE, SPECIAL_TOKENS, render_prompt
from lab.sample.shape import Config

FILES = {
    "README.md",
    "chat_template.jinja",
    "config.json",
    "generation_config.json",
    "model.safetensors",
    "results.json",
    "tokenizer.json",
    "tokenizer_config.json",
}
QWEN2_PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def read_json(name):
    return json.loads((MODEL_DIR / name).read_text(encoding="utf-8"))


def tensor_headers():
    with (MODEL_DIR / "model.safetensors").open("rb") as file:
        (n_header_bytes,) = struct.unpack("<Q", file.read(8))
        header = json.loads(file.read(n_header_bytes))
    header.pop("__metadata__", None)
    return header


def test_all_files_are_there_and_below_ten_megabytes():
    assert {path.name for path in MODEL_DIR.iterdir()} == FILES
    assert sum(path.stat().st_size for path in MODEL_DIR.iterdir()) < 10_000_000


def test_weights_are_f16_with_rows_for_k_quants():
    headers = tensor_headers()
    shape = Config()
    assert len(headers) == 2 + 9 * shape.num_hidden_layers
    for name, header in headers.items():
        assert header["dtype"] == "F16", name
        assert header["shape"][-1] % 256 == 0, name
    assert headers["model.embed_tokens.weight"]["shape"] == [2048, 256]
    assert headers["model.layers.3.self_attn.k_proj.weight"]["shape"] == [128, 256]
    assert headers["model.layers.0.mlp.down_proj.weight"]["shape"] == [256, 768]
    assert "lm_head.weight" not in headers


def test_config_is_the_shape_in_code():
    config = read_json("config.json")
    assert config == json.loads(json.dumps(Config().to_hf()))
    assert config["architectures"] == ["LlamaForCausalLM"] and config["tie_word_embeddings"]


def test_special_tokens_have_the_ids_that_the_configs_name():
    vocab = read_json("tokenizer.json")["model"]["vocab"]
    added = {t["content"]: t["id"] for t in read_json("tokenizer.json")["added_tokens"]}
    assert added == {token: n for n, token in enumerate(SPECIAL_TOKENS)}
    assert sorted(vocab.values()) == list(range(2048))
    assert read_json("config.json")["eos_token_id"] == added["<|im_end|>"]
    assert read_json("tokenizer_config.json")["eos_token"] == "<|im_end|>"
    assert read_json("tokenizer_config.json")["chat_template"] == CHAT_TEMPLATE
    assert (MODEL_DIR / "chat_template.jinja").read_text(encoding="utf-8") == CHAT_TEMPLATE


def test_pre_tokenizer_is_the_one_the_engine_knows_as_qwen2():
    split, bytes_ = read_json("tokenizer.json")["pre_tokenizer"]["pretokenizers"]
    assert split["pattern"] == {"Regex": QWEN2_PATTERN} and split["behavior"] == "Isolated"
    assert bytes_["type"] == "ByteLevel"
    assert not bytes_["add_prefix_space"] and not bytes_["use_regex"]


def test_any_bytes_survive_the_tokenizer():
    tokenizers = pytest.importorskip("tokenizers")
    tokenizer = tokenizers.Tokenizer.from_file(str(MODEL_DIR / "tokenizer.json"))
    for text in ("21.5 °C", "Grüße, 你好 🙂", "a\r\n\tb  c", '{"do":"x"}', "I'll"):
        ids = tokenizer.encode(text, add_special_tokens=False).ids
        assert tokenizer.decode(ids) == text
    every_byte = "".join(map(chr, range(256)))
    assert tokenizer.decode(tokenizer.encode(every_byte).ids) == every_byte


def test_rare_names_are_cut_alike_in_request_and_answer():
    tokenizers = pytest.importorskip("tokenizers")
    tokenizer = tokenizers.Tokenizer.from_file(str(MODEL_DIR / "tokenizer.json"))
    request = tokenizer.encode("in the orangery now").tokens
    answer = tokenizer.encode('"room":"orangery"').tokens
    assert "".join(request) == "inĠtheĠorangeryĠnow"
    cut = answer[answer.index('":"') + 1 : -1]
    start = request.index("Ġ") + 1 if "Ġ" in request else 2
    assert [piece.removeprefix("Ġ") for piece in request[start : start + len(cut)]] == cut


@pytest.mark.parametrize(
    "messages",
    [
        [{"role": "user", "content": "hi"}],
        [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "{{ 1 }} <x>"}],
        [
            {"role": "user", "content": "a"},
            {"role": "assistant", "content": "b"},
            {"role": "user", "content": "c"},
        ],
    ],
)
def test_template_and_plain_rendering_agree(messages):
    jinja2 = pytest.importorskip("jinja2")
    template = jinja2.Template(CHAT_TEMPLATE)
    assert template.render(messages=messages, add_generation_prompt=True) == render_prompt(messages)


def test_the_card_is_what_the_code_writes():
    card = (MODEL_DIR / "README.md").read_text(encoding="utf-8")
    assert card == card_text(results.load())
    assert "license: apache-2.0" in card and generator.DEFAULT_SYSTEM in card
    assert re.search(r"\{\w+\}", card) is None
