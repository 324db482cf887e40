"""Classify a published row: its engine class, quantization and board, or the reason to skip it.

Nothing here names a row: a row is used or set aside by rules that hold for any file with these
columns, and by `published_sources.toml` for whole sources.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path

from boardfit.device_profiles.cost.engine_classes import EngineClass
from boardfit.device_profiles.profile import DeviceProfile
from boardfit.device_profiles.toml_parser import decode_toml
from lab.speed.engine_classes import ENGINE_CLASSES
from lab.speed.published_rows import Row
from lab.speed.quants import known_quants


@dataclass(frozen=True)
class SourceFact:
    """An entry of `published_sources.toml`."""

    match: str
    set_aside: str | None = None
    llama_cpp_is: str | None = None


@lru_cache(maxsize=1)
def source_facts() -> tuple[SourceFact, ...]:
    data = decode_toml((Path(__file__).parent / "published_sources.toml").read_text("utf-8"))
    return tuple(SourceFact(**entry) for entry in data["source"])


def _fact(row: Row) -> SourceFact:
    text = f"{row.source} {row.runtime}".lower()
    matching = (fact for fact in source_facts() if fact.match.lower() in text)
    return next(matching, SourceFact(""))


_CPU_RUNTIMES = (
    ("t-mac", "t-mac"),
    ("powerinfer", "powerinfer"),
    ("distributed-llama", "distributed-llama"),
    ("cactus", "cactus"),
    ("mnn", "mnn"),
    ("litert-lm", "litert-lm"),
    ("litert|mediapipe|tflite", "mediapipe"),
    ("executorch", "executorch"),
)
_LLAMA_RUNTIMES = r"llama\.cpp|llama-cpp|ollama|llamafile|ik_llama|lm studio|koboldcpp"
# Run-time repacking came with build 4180 and pull request 10446 in November 2024, ollama 0.5 and
# llamafile 0.9.
_OLD = re.compile(
    r"2023-\d|2024-0\d|2024-10|ollama 0\.[0-4]\b|llamafile-0\.[0-8]\b|\bb[1-3]\d{3}\b|\bb40\d\d\b"
)


def _is_old(row: Row) -> bool:
    if _OLD.search(row.runtime.lower()):
        return True
    thread = re.search(r"llama\.cpp/(?:pull|issues|discussions)/(\d+)", row.source)
    return thread is not None and int(thread[1]) < 10446


def _is_old_cuda(profile: DeviceProfile) -> bool:
    capability = profile.accelerator and profile.accelerator.compute_capability
    return bool(capability and float(capability) < 7.0)


def accelerator_kind(row: Row) -> str:
    """`cpu`, `gpu`, `cuda` or `npu` as the row states it; empty where it states none, or several at
    once.
    """
    text = row.accelerator.lower()
    kinds = {kind for kind, pattern in _ACCELERATORS if re.search(pattern, text)}
    if kinds == {"cuda", "gpu"}:
        return "cuda"
    return kinds.pop() if len(kinds) == 1 else ""


_ACCELERATORS = (
    ("cpu", r"\bcpu\b"),
    ("cuda", r"cuda"),
    ("npu", r"npu|hexagon|htp|\bdsp\b|tpu"),
    ("gpu", r"gpu|vulkan|opencl|metal|adreno|mali"),
)


def engine_class(row: Row, profile: DeviceProfile | None) -> EngineClass | None:
    """The engine class of a row on a board (None: unknown), None when its accelerator or runtime is
    not stated.
    """
    runtime, accelerator = row.runtime.lower(), accelerator_kind(row)
    is_llama = re.search(_LLAMA_RUNTIMES, runtime) is not None
    if accelerator == "cpu":
        for pattern, name in _CPU_RUNTIMES:
            if re.search(pattern, runtime):
                return ENGINE_CLASSES[name]
        if not is_llama:
            return None
        if re.search(r"Q4_0_[48]_[48]", row.quant, re.IGNORECASE):
            return ENGINE_CLASSES["llama.cpp-2024-repacked"]
        name = _fact(row).llama_cpp_is or ("llama.cpp-2024" if _is_old(row) else "llama.cpp")
        return ENGINE_CLASSES[name]
    if accelerator in ("gpu", "cuda"):
        if re.search("litert|mediapipe", runtime):
            return ENGINE_CLASSES["litert-gpu"]
        if accelerator == "cuda" or "jetson" in row.device.lower() or "cuda" in runtime:
            if "vulkan" in runtime:
                return ENGINE_CLASSES["other-gpu"]
            name = "mlc" if "mlc" in runtime else "vllm" if "vllm" in runtime else "llama.cpp"
            old = name == "llama.cpp" and profile is not None and _is_old_cuda(profile)
            return ENGINE_CLASSES[f"{name}-cuda{'-old' if old else ''}"]
        return ENGINE_CLASSES["llama.cpp-gpu" if is_llama else "other-gpu"]
    if accelerator == "npu":
        if row.quant.lower() == "w4" and re.search("qnn|genie", runtime):
            return ENGINE_CLASSES["qnn-npu-w4"]
        for pattern, name in (("rkllm", "rkllm"), ("qnn|genie", "qnn"), ("litert", "litert")):
            if re.search(pattern, runtime):
                return ENGINE_CLASSES[f"{name}-npu"]
        return ENGINE_CLASSES["other-npu"]
    return None


@dataclass(frozen=True)
class Quant:
    """A quantization of `lab.speed.quants` and the type of the KV cache."""

    name: str
    kv_type: str = "f16"


_SAME = {
    **{"FP16": "F16", "FP32": "F32", "HALF": "F16", "FLOAT16": "F16", "FLOAT32": "F32"},
    **{"Q8": "Q8_0", "Q4": "Q4_0", "Q40": "Q4_0", "Q80": "Q8_0", "Q5": "Q5_0", "Q6": "Q6_K"},
    # Mixtures of others around the same types (bartowski's, Unsloth's): the nearest of llama.cpp's.
    **{"Q2_K_S": "Q2_K", "Q2_K_L": "Q2_K", "Q2_K_XL": "Q2_K", "Q3_K_XL": "Q3_K_L"},
    **{"Q4_K_L": "Q4_K_M", "Q4_K_XL": "Q4_K_M", "Q5_K_L": "Q5_K_M", "Q5_K_XL": "Q5_K_M"},
    **{"Q6_K_L": "Q6_K", "Q6_K_XL": "Q6_K", "Q8_K_XL": "Q8_0", "IQ3_XS": "IQ3_S", "IQ2_M": "IQ2_S"},
    **{"IQ4_NL_4_4": "IQ4_NL", "MXFP4_MOE": "MXFP4"},
}
# Common names for integers of a number of bits, tried in turn.
_INTEGERS = (
    ("I4", r"2/4/8|MIXED"),
    ("I2", r"\bW2|INT2|\b2[- ]?BIT"),
    ("I4", r"\bW4|INT4|\b4[- ]?BIT|CQ4|\bQ4|\bI4\b|AWQ|GPTQ|HQQ|\bNF4|NVFP4|UINT4"),
    ("I8", r"\bW8|INT8|\b8[- ]?BIT|\bFP8|\bI8\b"),
)


def read_quant(row: Row) -> Quant | None:
    """What the quant column means, None if it says nothing or something unknown."""
    text = row.quant.upper()
    kv = re.search(r"\bKV[ _=-](F16|Q8_0|Q4_0)\b", text)
    kv_type = kv[1].lower() if kv else "f16"
    bare = re.sub(r"\([^)]*\)", " ", text).strip() or text
    ollama = "ollama" in row.runtime.lower()
    if not bare:  # ollama's default tags; Q4_0 until 2024
        return Quant("Q4_0" if _is_old(row) else "Q4_K_M", kv_type) if ollama else None
    if re.search(r"Q4_0_[48]_[48]", bare):
        return Quant("Q4_0", kv_type)
    for word in re.findall(r"[A-Z0-9_]+", bare.replace("-", " ")):
        name = _SAME.get(word, word)
        if re.fullmatch(r"Q[2-5]_K", name) and name not in known_quants():
            name += "_M"
        if name in known_quants() and name not in ("I2", "I4", "I8"):
            return Quant(name, kv_type)
    is_llama = re.search(_LLAMA_RUNTIMES, row.runtime.lower()) is not None
    for part in (bare, text):
        for name, pattern in _INTEGERS:
            if re.search(pattern, part):
                llama = {"I4": "Q4_0", "I8": "Q8_0"}.get(name, name) if is_llama else name
                return Quant(llama, kv_type)
    return None


def slug(text: str) -> str:
    """Lower-case words with hyphens, what stands in brackets left out, "+" spelled out."""
    text = re.sub(r"\([^)]*\)", " ", text.lower()).replace("+", "-plus-")
    return re.sub(r"[^a-z0-9]+", "-", text).strip("-")


def stated_clocks(profile: DeviceProfile, row: Row) -> DeviceProfile:
    """The board at the clocks that the device text states, as in "A710 1.8 GHz"."""
    clocks = {
        core.lower(): float(ghz) * 1e9
        for core, ghz in re.findall(r"\b([AX]\d{1,3}) (\d\.\d{1,3}) ?GHz", row.device)
    }
    clusters = tuple(
        replace(cluster, clock_hz=clocks.get(cluster.core.rpartition("-")[2], cluster.clock_hz))
        for cluster in profile.clusters
    )
    return replace(profile, clusters=clusters)


def active_params_b(row: Row) -> float | None:
    """Billions of active parameters that a mixture's name states, as in "30B-A3B"."""
    stated = re.search(r"(?:\d ?[bB]|[-( ])-?\(?[aA](\d+(?:\.\d+)?)([bBmM])\b", row.model)
    if stated is None or not float(stated[1]):
        return None
    return float(stated[1]) / (1000 if stated[2] in "mM" else 1)


def counted(reasons: Iterable[str]) -> dict[str, int]:
    """How often each reason occurs, most frequent first."""
    totals: dict[str, int] = {}
    for reason in reasons:
        totals[reason] = totals.get(reason, 0) + 1
    return dict(sorted(totals.items(), key=lambda item: (-item[1], item[0])))


def whole_row_reasons(row: Row) -> Iterator[str]:
    """Why a row cannot be compared with any estimate, regardless of the board and the model."""
    text = row.text
    offload = re.search(r"ngl (\d+) of (\d+)", text)
    if row.broken:
        yield "broken row: a figure is not a number or impossible"
    if row.number("prefill_tps") is None and row.number("decode_tps") is None:
        yield "no prefill or decode figure"
    if reason := _fact(row).set_aside:
        yield reason
    if offload and int(offload[1]) < int(offload[2]):
        yield "layers split between CPU and GPU"
    if re.search(r"ram limited|limited to \d+ ?g", text):
        yield "RAM limited below the file: weights come from storage"
    if "sparse" in text:
        yield "sparse activations: how many weights are read is not known"
    if re.search(r"\b\d+ ?w mode", text) or "early firmware" in text:
        yield "board below its usual clocks (power mode or early firmware)"
