"""Runs upstream's `convert_hf_to_gguf.py` on many checkpoints in one process.

    python oracle_driver.py LLAMA_CPP_DIR < jobs.json

Started with the oracle environment's Python (torch, transformers), never imported by tests: loading
torch once instead of once per checkpoint is what keeps them short. A job is `{"model", "outfile",
"outtype", "vocab", "pre", "options"}`; `vocab: false` leaves the tokenizer out, for checkpoints
without one; `pre` is the pre-tokenizer where upstream's table of hashes does not know the
vocabulary, else null; `options` are further ones of the converter.
"""

import json
import sys
import traceback


def main() -> int:
    """Convert every job; the last line printed holds the failures, model → traceback."""
    sys.path.insert(0, sys.argv[1])
    import convert_hf_to_gguf
    from conversion.base import ModelBase, ModelType, TextModel

    prepare, base_pre = TextModel.prepare_metadata, TextModel.get_vocab_base_pre

    def prepare_without_vocab(self, vocab_only):
        self.set_vocab = lambda: None
        return prepare(self, vocab_only=vocab_only)

    failures = {}
    for job in json.load(sys.stdin):
        TextModel.prepare_metadata = prepare if job["vocab"] else prepare_without_vocab
        pre = job.get("pre")
        TextModel.get_vocab_base_pre = (lambda self, _, pre=pre: pre) if pre else base_pre
        options = ["--outfile", job["outfile"], "--outtype", job["outtype"]]
        sys.argv = ["convert", job["model"], *options, *job.get("options", ())]
        try:
            convert_hf_to_gguf.main()
        except BaseException:
            failures[job["model"]] = traceback.format_exc()
        for family in set(ModelBase._model_classes[ModelType.TEXT].values()):
            if "no_mtp" in vars(family):  # the option stays behind on the class
                del family.no_mtp
    print("\n" + json.dumps(failures))
    return 0


if __name__ == "__main__":
    sys.exit(main())
