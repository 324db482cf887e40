"""Where each input of the field stands with its verdict, so that none is written twice.

Those that are missing here are rows of the tables beside this file, under the input's own name.
"""

from __future__ import annotations

from pathlib import Path

from tests.field import test_checkpoints, test_gguf_files, test_model_files, test_talk

TESTS = Path(__file__).parents[1]
#: Rows of `test_model_files` under another name.
RENAMED = {
    "hf/lora-dir": "LoRA folder",
    "hf/merged-with-adapter": "merged with adapter",
    "hf/leftover-bnb": "leftover quantization_config",
    "hf/stale-index": "stale index beside a whole file",
    "hf/tied-with-head": "tied head stored twice",
    "hf/pad-beyond": "pad token past the rows",
    "hf/prefix-compiled": "prefix of torch.compile",
    "hf/prefix-none": "saved without a head",
    "hf/gptq-sidefile": "GPTQ without a word in config.json",
    "hf/checkpoint-root": "folder of a training run",
    "hf/two-templates": "two templates",
    "hf/consolidated": "original layout",
    "hf/bom-config": "byte order marks",
    "hf/bom-tokenizer-config": "byte order marks",
    "hf/rope-yarn-no-original": "yarn without the original length",
    "hf/my-phi3-mini": "folder called phi3",
    "hf/name-pytorch-model": "weights under another name",
    "hf/partial-hub-cache": "half a cache",
    "gguf/ollama/blobs/sha256-00aa11bb": "Ollama's blob",
    "gguf/model.gguf.part1of2": "first piece",
    "gguf/ollama-gemma3-vision-inside.gguf": "vision part inside",
    "gguf/new-architecture.gguf": "architecture of tomorrow",
    "gguf/bert-embedding.gguf": "encoder",
    "gguf/type-ik-iq4_ks.gguf": "type of ik_llama.cpp",
    "gguf/type-bitnet-i2_s.gguf": "type of bitnet.cpp",
    "gguf/huge-logits.gguf": "absurd weights",
    "gguf/ggml-base.en.bin": "whisper's .bin",
    "gguf/mmproj-F16.gguf": "mmproj, run",
    "gguf/lmstudio/ggml-org/SmolVLM-500M-Instruct-GGUF": "LM Studio's folder",
    "gguf/lmstudio/lmstudio-community/gemma-3-4b-it-GGUF": "LM Studio's folder",
    "gguf/lora.gguf": "LoRA, run",
    "gguf/imatrix.gguf": "importance matrix, run",
    "gguf/flux.gguf": "image model",
}
_ORACLE = "converters/families/test_oracle.py test_equals_upstream"
_QUANTIZED = "converters/source/test_hf.py test_quantized_checkpoint"
_CARELESS = "edge/files/test_gguf.py test_what_a_careless_tool_writes_is_no_attack"
_OUTPUTS = "edge/bench/importers/test_default_outputs.py "
_BOARDS = "field/test_boards.py "
#: Tests of another kind: file and function.
ELSEWHERE = {
    "hf/index-names-lm-head": "converters/source/test_hf.py test_index_with_a_tensor_of_no_shard",
    "hf/index-lacks-norm":
        "converters/source/test_hf.py test_index_without_a_tensor_that_is_there",
    "hf/sp-only": "converters/tokenizers/test_fresh.py test_fresh_sentence_piece",
    "hf/sp-config": "converters/tokenizers/test_rules.py test_llama_writes_the_prefix_space_first",
    "hf/sp-chatml":
        "converters/tokenizers/test_fresh.py test_sentence_piece_with_chat_tokens_and_padding",
    "hf/phi4-rope-scaling": _ORACLE,
    "hf/gemma3-4b-old": "converters/families/test_gemma3.py "
        "test_the_vision_tower_is_left_out_and_said_so",
    "hf/gemma3-4b-new": "converters/families/test_gemma3.py "
        "test_the_vision_tower_is_left_out_and_said_so",
    "hf/qwen3-moe": _ORACLE,
    "hf/qwen3-moe-fused": _ORACLE,
    "hf/fp8": _QUANTIZED,
    "hf/fp8-noconfig": "converters/source/test_hf.py test_wrong_dtype_names_the_tensor",
    "hf/mlx-4bit": _QUANTIZED,
    "hf/ministral3-fp8": _QUANTIZED,
    "gguf/all-q4_k.gguf": "converters/build/test_as_is_build.py "
        "test_the_loss_of_a_second_rounding_is_said_before_it_starts",
    "gguf/duplicate-key.gguf": _CARELESS,
    "gguf/latin1.gguf": _CARELESS,
    "gguf/thinker.gguf": "edge/chat/test_run_command.py test_thinking_is_no_answer_in_time",
    **{f"prompts/{name}.txt": "field/test_talk.py test_a_prompt_from_any_editor_is_the_same"
       for name in ("crlf", "bom", "utf16")},
    **{f"results/llama-bench{ending}": f"{_OUTPUTS}test_llama_bench_in_any_form"
       for ending in (".json", "-nosamples.json", "-log.json", "-utf16.json", ".csv", ".md")},
    "results/llama-bench-twice.json": f"{_OUTPUTS}test_two_runs_in_one_file_are_both_read",
    **{f"results/{name}.txt": f"{_OUTPUTS}test_speeds_of_one_answer"
       for name in ("ollama-verbose", "llama-cli", "litert_lm_main")},
    "results/mlperf_log_summary.txt":
        "edge/bench/importers/test_importers.py test_figures_are_the_tool_s_own",
    "captures/boards.tsv": f"{_BOARDS}test_board_text",
    "captures/tegrastats.txt": f"{_BOARDS}test_tegrastats",
    **{f"captures/{name}.json": f"{_BOARDS}test_capture"
       for name in ("pi4-32bit-userland", "alpine-pi5", "orin-nano-cv0", "galaxy-sm-s928b",
                    "visionfive2", "loongson-3a6000")},
}  # fmt: skip


def test_every_input_of_the_field_has_one_place() -> None:
    tables = (test_checkpoints.CASES, test_gguf_files.CASES, test_talk.CASES)
    own = {case.name.partition(", ")[0] for cases in tables for case in cases}
    places = [*own, *RENAMED, *ELSEWHERE]
    assert len(places) == len(set(places)) == 138


def test_every_place_is_there() -> None:
    rows = {case.name for case in test_model_files.CASES}
    assert set(RENAMED.values()) <= rows
    for name, place in ELSEWHERE.items():
        path, test = place.split()
        assert f"def {test}(" in (TESTS / path).read_text(), name
