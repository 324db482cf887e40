"""The engine `onnx`: a folder that onnxruntime-genai's model builder wrote, or
`edge build --format onnx`. The path is that of `model.onnx`; beside it lie its data,
`genai_config.json` and the tokenizer.
"""

from __future__ import annotations

from boardfit.edge.disk.opened_file import OpenedFile, linked_folder
from boardfit.edge.engines.abort import ChunkSizer
from boardfit.edge.engines.fit import available_bytes, check_fits
from boardfit.edge.engines.hf_tokenizer import HfTokenizer
from boardfit.edge.engines.kv_state import fingerprint
from boardfit.edge.engines.onnx import library
from boardfit.edge.engines.onnx.check import check_folder
from boardfit.edge.engines.onnx.decoder import OnnxDecoder, OnnxGraph
from boardfit.edge.engines.settings import DEFAULT_N_CTX, EngineSettings, default_threads
from boardfit.edge.engines.step_engine import Identity, StepEngine, choose_n_ctx
from boardfit.edge.terminal.progress import Progress

#: Most tokens of a prefill step. The runtime's attention computes every score of a step, those that
#: its mask hides too: four steps of 128 take 0.9 of the time of one of 512 (0.5B, x86-64), and the
#: products are no quicker with more rows.
_LONGEST_STEP = 128


class OnnxEngine(StepEngine[OnnxDecoder]):
    """See the module."""

    name = "onnx"

    @classmethod
    def open(
        cls, path: OpenedFile, settings: EngineSettings, *, progress: Progress | None = None
    ) -> OnnxEngine:
        """Check the folder and the memory, load. See `boardfit.edge.engines.open_engine`."""
        source = check_folder(path)
        n_ctx = choose_n_ctx(
            source.n_ctx, settings.n_ctx or min(source.n_ctx, DEFAULT_N_CTX), path.name
        )
        tokenizer = HfTokenizer.of_model(path)
        tokenizer.eog = tokenizer.eog | frozenset(source.eog)
        if settings.check_memory:
            planned = settings.need_bytes or source.need_bytes(n_ctx)
            check_fits(max(planned, source.least_bytes(n_ctx)), available_bytes(), path.name)
        n_threads = settings.n_threads or default_threads()
        lib, report = library.load_library(), progress or (lambda done, total: None)
        report(0, 1)
        try:
            with linked_folder([source.config_file, *source.model.files]) as folder:
                graph = OnnxGraph(lib, folder, n_ctx, n_threads)
        except library.GenaiError as error:
            words = str(error).replace(f"{folder}", f"{path.parent}")
            raise library.load_error(path.name, words) from None
        report(1, 1)
        try:
            longest = settings.prefill_chunk or min(settings.n_batch, _LONGEST_STEP)
            decoder = OnnxDecoder(
                graph,
                n_ctx=n_ctx,
                n_logits=source.n_vocab,
                can_rewind=source.can_rewind,
                chunks=ChunkSizer(longest, source.n_nodes, settings.prefill_chunk),
            )
            version, runtime = library.version(), library.runtime_version()
            identity = Identity(
                version=version,
                build=f"onnxruntime-genai/{version} onnxruntime/{runtime}",
                model_name=path.name,
                fingerprint=fingerprint(path, 0),
                quant=source.quant,
                kv_type=source.kv_type,
                details={
                    "can_cut_prefix": source.can_rewind,
                    "model_type": source.type,
                    "runtime": f"onnxruntime {runtime}",
                },
            )
            return cls(decoder, tokenizer, identity, settings, n_threads)
        except BaseException:
            graph.close()
            raise
