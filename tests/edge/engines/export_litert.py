"""Exports checkpoints with upstream's litert-torch, all in one process because importing it takes
longer than a tiny model does. Run by the interpreter that has it:

    python export_litert.py '[{"checkpoint": …, "out": …, "prefill": [8, 64], "n_ctx": 1024}, …]'

Beside `model.litertlm` each job leaves `plain.tflite`: the decoder with its composite operators
(206, unknown to tflite-runtime 2.14) replaced by what they stand for.
"""

from __future__ import annotations

import copy
import json
import sys
from pathlib import Path
from typing import Any

_COMPOSITE = 206


def main() -> None:
    from litert_torch.generative.export_hf.export import export

    for job in json.loads(sys.argv[1]):
        export(
            job["checkpoint"],
            job["out"],
            prefill_lengths=job["prefill"],
            cache_length=job["n_ctx"],
            quantization_recipe=job["recipe"],
        )
        out = Path(job["out"])
        (out / "plain.tflite").write_bytes(without_composites(model_section(out)))


def model_section(out: Path) -> bytes:
    """The TFLite model inside `model.litertlm`, found by upstream's own reader of the header."""
    from litert_lm_builder import litertlm_header_schema_py_generated as schema

    data = (out / "model.litertlm").read_bytes()
    header = schema.LiteRTLMMetaData.GetRootAs(data[32 : int.from_bytes(data[24:32], "little")], 0)
    sections = header.SectionMetadata()
    for i in range(sections.ObjectsLength()):
        section = sections.Objects(i)
        if section.DataType() == schema.AnySectionDataType.TFLiteModel:
            return data[section.BeginOffset() : section.EndOffset()]
    raise LookupError("no model in it")


def without_composites(data: bytes) -> bytes:
    """The model with every composite's decomposition in its place, and no other subgraphs."""
    import flatbuffers
    import numpy as np
    from ai_edge_litert import schema_py_generated as schema

    model = schema.ModelT.InitFromPackedBuf(data, 0)
    for buffer in model.buffers:
        if buffer.offset and buffer.offset > 1:  # its data lies behind the FlatBuffer
            buffer.data = np.frombuffer(data, np.uint8, buffer.size, buffer.offset)
            buffer.offset = buffer.size = 0
    codes = [max(code.builtinCode, code.deprecatedBuiltinCode) for code in model.operatorCodes]
    kept = sorted({signature.subgraphIndex for signature in model.signatureDefs})
    for index in kept:
        subgraph = model.subgraphs[index]
        subgraph.operators = [
            replacement
            for operator in subgraph.operators
            for replacement in decomposed(model, subgraph, operator, codes)
        ]
    used = {operator.opcodeIndex for index in kept for operator in model.subgraphs[index].operators}
    renumbered = {old: new for new, old in enumerate(sorted(used))}
    model.operatorCodes = [model.operatorCodes[old] for old in sorted(used)]
    model.subgraphs = [model.subgraphs[index] for index in kept]
    for subgraph in model.subgraphs:
        for operator in subgraph.operators:
            operator.opcodeIndex = renumbered[operator.opcodeIndex]
    for signature in model.signatureDefs:
        signature.subgraphIndex = kept.index(signature.subgraphIndex)
    builder = flatbuffers.Builder(len(data))
    builder.Finish(model.Pack(builder), b"TFL3")
    return bytes(builder.Output())


def decomposed(model: Any, subgraph: Any, operator: Any, codes: list[int]) -> list[Any]:
    """`operator` itself, or the operators that it is made of, on tensors of `subgraph`."""
    if codes[operator.opcodeIndex] != _COMPOSITE:
        return [copy.copy(operator)]
    inner = model.subgraphs[operator.builtinOptions2.decompositionSubgraphIndex]
    place = {
        int(theirs): int(ours)
        for theirs, ours in [
            *zip(inner.inputs, operator.inputs, strict=True),
            *zip(inner.outputs, operator.outputs, strict=True),
        ]
    }
    for index, tensor in enumerate(inner.tensors):
        if index not in place:
            place[index] = len(subgraph.tensors)
            subgraph.tensors.append(copy.copy(tensor))
    found = []
    for step in inner.operators:
        moved = copy.copy(step)
        moved.inputs = [place[int(i)] if i >= 0 else -1 for i in step.inputs]
        moved.outputs = [place[int(i)] for i in step.outputs]
        found += decomposed(model, subgraph, moved, codes)
    return found


if __name__ == "__main__":
    main()
