"""Runs upstream's converter with `--vocab-only` on many directories in one process.

    python oracle_driver.py LLAMA_CPP_DIR < jobs.json

Started with the oracle environment's Python, never imported by tests. A job is `{"model",
"outfile", "pre"}`; `pre` is what upstream's hash table is made to answer for a vocabulary that it
does not know (null: it has to know it). Prints, last, a JSON object: model → pre-tokenizer that
upstream itself recognised, or null.
"""

import json
import sys


def main() -> int:
    sys.path.insert(0, sys.argv[1])
    import convert_hf_to_gguf
    from conversion.base import TextModel

    recognise = TextModel.get_vocab_base_pre
    recognised = {}

    get_class = convert_hf_to_gguf.get_model_class

    def without_parameters(*args, **kwargs):
        # The vocabulary alone is compared, so that config.json can stay a few lines.
        cls = get_class(*args, **kwargs)
        for each in cls.__mro__:
            if "set_gguf_parameters" in vars(each):
                each.set_gguf_parameters = lambda self: None
        return cls

    convert_hf_to_gguf.get_model_class = without_parameters
    for job in json.load(sys.stdin):

        def answer(self, tokenizer, job=job):
            try:
                recognised[job["model"]] = recognise(self, tokenizer)
            except NotImplementedError:
                recognised[job["model"]] = None
                if job["pre"] is None:
                    raise
            return recognised[job["model"]] or job["pre"]

        TextModel.get_vocab_base_pre = answer
        sys.argv = ["convert", job["model"], "--outfile", job["outfile"], "--vocab-only"]
        convert_hf_to_gguf.main()
    print("\n" + json.dumps(recognised))
    return 0


if __name__ == "__main__":
    sys.exit(main())
