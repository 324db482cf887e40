"""What a folder for onnxruntime-genai must be before native code reads it: `genai_config.json` with
known keys only (others can name libraries to load and files to open), the model's graph checked.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from boardfit.edge.bundle.bundle import refuse_duplicates
from boardfit.edge.disk.opened_file import OpenedFile, Source
from boardfit.edge.engines.model_file import model_file
from boardfit.edge.errors import InputError, UnsafeInputError, UnsupportedModelError
from boardfit.edge.files.onnx import OnnxModel, read_onnx
from boardfit.edge.units import MIB, did_you_mean, printable

CONFIG = "genai_config.json"
MAX_CONFIG_BYTES = 1024 * 1024
#: Types of model whose memory onnxruntime-genai cannot cut back (`Generator::RewindToLength`).
NO_REWIND = ("lfm2", "lfm2_moe", "whisper", "phi3v", "decoder-pipeline")

_TOP = ("model", "search")
_MODEL = (
    "bos_token_id", "context_length", "decoder", "eos_token_id", "pad_token_id", "type",
    "vocab_size", "bot_token_id", "eot_token_id", "bor_token_id", "eor_token_id",
)  # fmt: skip
_DECODER = (
    "session_options", "run_options", "filename", "head_size", "hidden_size", "inputs", "outputs",
    "num_attention_heads", "num_hidden_layers", "num_key_value_heads", "sliding_window",
    "layer_types", "conv_cache_size",
)  # fmt: skip
_SESSION = (
    "log_id", "provider_options", "intra_op_num_threads", "inter_op_num_threads",
    "log_severity_level", "enable_cpu_mem_arena", "enable_mem_pattern", "graph_optimization_level",
)  # fmt: skip
_MAX_N_CTX = 1 << 24
#: Interpreter, onnxruntime, genai and numpy; measured at 75 to 95 MiB.
_PROCESS_BYTES = 95 * MIB


@dataclass(frozen=True)
class GenaiFolder:
    """A checked folder. `n_ctx` is the context that the model was built for."""

    config_file: OpenedFile
    config: Mapping[str, Any]
    model: OnnxModel
    type: str
    n_ctx: int
    n_vocab: int
    eog: tuple[int, ...]

    @property
    def can_rewind(self) -> bool:
        """Whether the KV cache can be cut back to a prefix."""
        sliding = self.config["model"]["decoder"].get("sliding_window") or {}
        return self.type not in NO_REWIND and not sliding

    @property
    def kv_bytes_per_token(self) -> int:
        """Bytes of keys and values of one position, in the graph's own type (float32 on a CPU)."""
        total = 0
        for value in self.model.inputs:
            if value.name.startswith("past_key_values.") and value.shape and len(value.shape) == 4:
                heads, width = value.shape[1], value.shape[3]
                layer = self.config["model"]["decoder"]
                heads = heads if isinstance(heads, int) else layer["num_key_value_heads"]
                width = width if isinstance(width, int) else layer["head_size"]
                total += heads * width * (2 if value.dtype == "float16" else 4)
        return total

    @property
    def kv_type(self) -> str:
        kinds = {v.dtype for v in self.model.inputs if v.name.startswith("past_key_values.")}
        names = {"float32": "f32", "float16": "f16"}
        return "/".join(sorted(names.get(kind, kind) for kind in kinds)) or "f32"

    @property
    def quant(self) -> str:
        """`int4 b32`, by the operators that hold most of the weights."""
        sizes: dict[str, int] = {}
        for node in self.model.nodes:
            if node.op_type == "MatMulNBits":
                ints = node.ints
                kind = f"int{ints.get('bits', 4)} b{ints.get('block_size', 32)}"
                sizes[kind] = sizes.get(kind, 0) + ints.get("N", 0) * ints.get("K", 0)
        return max(sizes, key=lambda kind: sizes[kind]) if sizes else "float"

    @property
    def n_nodes(self) -> int:
        """A step's products over the widest one; the output matrix sees one token only."""
        sizes = [
            node.ints.get("N", 0) * node.ints.get("K", 0)
            for node in self.model.nodes
            if node.op_type == "MatMulNBits" and not node.name.startswith("/lm_head")
        ]
        layers = int(self.config["model"]["decoder"]["num_hidden_layers"])
        return max(1, min(sum(sizes) // max(1, max(sizes, default=1)), 3 * layers))

    def need_bytes(self, n_ctx: int) -> int:
        """Memory that it will take: the matrices are there as mapped, and as the kernels want."""
        return self.least_bytes(n_ctx) + self.model.nbytes + _PROCESS_BYTES

    def least_bytes(self, n_ctx: int) -> int:
        """Memory that no plan can promise to save: the file and the KV cache."""
        return self.model.nbytes + n_ctx * self.kv_bytes_per_token


def check_folder(model: Source) -> GenaiFolder:
    """Check the model and the configuration beside it. Raises InputError for what is missing or
    broken, UnsafeInputError for what no builder writes, UnsupportedModelError for other models.
    """
    model_path = model_file(model)
    graph = read_onnx(model_path)
    path = model_path.open_beside(CONFIG)
    if path is None:
        raise UnsupportedModelError(
            f"{model_path.name} is no language model for onnxruntime-genai: there is no {CONFIG} "
            "beside it",
            next_step="edge bench measures any network; edge build MODEL --format onnx makes a "
            "language model",
        )
    config = _read_config(path)
    section = config["model"]
    decoder = section["decoder"]
    if decoder["filename"] != model_path.name:
        raise UnsafeInputError(
            f"{path}: names {printable(str(decoder['filename']))!r} as its model, not "
            f"{model_path.name}"
        )
    eos = section.get("eos_token_id")
    eog = tuple(token for token in (eos if isinstance(eos, list) else [eos]) if token is not None)
    if odd := [token for token in eog if type(token) is not int or token < 0]:
        raise InputError(f"{path}: eos_token_id holds {odd[0]!r:.40}, expected token ids")
    return GenaiFolder(
        config_file=path,
        config=config,
        model=graph,
        type=str(section["type"]),
        n_ctx=_count(path, section, "context_length", _MAX_N_CTX),
        n_vocab=_count(path, section, "vocab_size", 1 << 24),
        eog=eog,
    )


def _read_config(path: OpenedFile) -> Mapping[str, Any]:
    try:
        document = json.loads(path.read(MAX_CONFIG_BYTES), object_pairs_hook=refuse_duplicates)
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path}: not valid JSON: {error}") from None
    _known(path, "it", document, _TOP, required=("model",))
    model = document["model"]
    _known(path, "model", model, _MODEL, required=("decoder", "type"))
    decoder = model["decoder"]
    _known(path, "decoder", decoder, _DECODER, required=("filename", "num_hidden_layers"))
    for key in ("num_hidden_layers", "num_key_value_heads", "head_size"):
        _count(path, decoder, key, 1 << 16)
    options = decoder.get("session_options", {})
    _known(path, "session_options", options, _SESSION)
    for provider in options.get("provider_options") or ():
        if not isinstance(provider, dict) or set(provider) - {"cpu"}:
            raise UnsupportedModelError(
                f"{path}: built for {printable(str(provider))}; this engine runs on the CPU",
                next_step="build it again: edge build MODEL --format onnx",
            )
    if decoder.get("run_options"):
        raise UnsafeInputError(f"{path}: run_options are not expected")
    return dict(document)


def _known(
    path: OpenedFile,
    where: str,
    section: Any,
    known: tuple[str, ...],
    required: tuple[str, ...] = (),
) -> None:
    if not isinstance(section, dict):
        raise InputError(f"{path}: {where} is not an object")
    for key in section:
        if key not in known:
            raise UnsafeInputError(
                f"{path}: {where} has the key {printable(key)!r}, which this engine does not "
                f"take.{did_you_mean(key, known)}"
            )
    for key in required:
        if key not in section:
            raise InputError(f"{path}: {where} lacks {key!r}")


def _count(path: OpenedFile, section: Mapping[str, Any], key: str, limit: int) -> int:
    value = section.get(key)
    if type(value) is not int or not 0 < value <= limit:
        raise InputError(f"{path}: {key} is {value!r:.40}, expected 1 to {limit}")
    return value
