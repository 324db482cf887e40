"""The .litertlm container: graph, tokenizer, what stops an answer, chat template, state buffers.

Metadata messages are LiteRT-LM's own (litert_lm_builder.runtime.proto). Two habits of the packer in
litert-torch are not followed: stop strings with punctuation glued in front (ids are exact),
and a start token for every tokenizer that names one, whether or not it begins its texts with it.
"""

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import litert_lm_builder
from litert_lm_builder import litertlm_builder
from litert_lm_builder.runtime.proto import llm_metadata_pb2, llm_model_type_pb2
from litert_torch.generative.export_hf.model_ext import metadata_builder

_MODEL_TYPES = {"qwen3": "qwen3", "qwen2": "qwen2p5"}


def write_litertlm(
    output: Path,
    graph: Path,
    tokenizer: Path,
    *,
    source: Any,
    config: Any,
    start_token: int | None,
    stop_tokens: Sequence[int],
    chat_template: str | None,
    cache_length: int,
    identity: str,
) -> None:
    """Pack everything into `output`. The same input gives the same bytes: `identity` takes the
    place of the random id that the packer would write.
    """
    work = output.parent
    metadata = llm_metadata_pb2.LlmMetadata()
    if start_token is not None:
        metadata.start_token.token_ids.ids.append(start_token)
    for token in stop_tokens:
        metadata.stop_tokens.add().token_ids.ids.append(token)
    if chat_template:
        metadata.jinja_prompt_template = chat_template
    metadata.max_num_tokens = cache_length
    family = _MODEL_TYPES.get(source.model_config.model_type, "generic_model")
    message = {
        "qwen3": llm_model_type_pb2.Qwen3,
        "qwen2p5": llm_model_type_pb2.Qwen2p5,
        "generic_model": llm_model_type_pb2.GenericModel,
    }[family]
    metadata.llm_model_type.CopyFrom(llm_model_type_pb2.LlmModelType(**{family: message()}))
    if chat_template and "<think>" in chat_template:
        channel = metadata.channels.add()
        channel.channel_name, channel.start, channel.end = "thought", "<think>", "</think>"
    metadata_path = work / f".{output.name}.metadata.pb"
    executor_path = work / f".{output.name}.executor.pb"
    metadata_path.write_bytes(metadata.SerializeToString(deterministic=True))
    executor = metadata_builder.build_executor_metadata(source, config, None)
    executor_path.write_bytes(executor.SerializeToString(deterministic=True))
    litertlm_builder.populate_system_metadata = lambda entries: entries
    builder = litert_lm_builder.LitertLmFileBuilder()
    builder.add_system_metadata(_text("Authors", "boardfit"))
    builder.add_system_metadata(_text("uuid", _uuid(identity)))
    builder.add_llm_metadata(str(metadata_path))
    builder.add_executor_metadata(str(executor_path))
    if tokenizer.suffix == ".json":
        builder.add_hf_tokenizer(str(tokenizer))
    else:
        builder.add_sentencepiece_tokenizer(str(tokenizer))
    builder.add_tflite_model(str(graph), litert_lm_builder.TfLiteModelType.PREFILL_DECODE)
    with output.open("wb") as file:
        builder.build(file)
    metadata_path.unlink()
    executor_path.unlink()


def _text(key: str, value: str) -> Any:
    return litert_lm_builder.Metadata(key=key, value=value, dtype=litert_lm_builder.DType.STRING)


def _uuid(identity: str) -> str:
    digest = hashlib.sha256(identity.encode()).hexdigest()
    return "-".join((digest[:8], digest[8:12], digest[12:16], digest[16:20], digest[20:32]))
