"""Tokenizers of checkpoints → GGUF metadata.

    tokenizer = load_tokenizer(directory, config, family.arch)   # loading
    tokenizer.metadata()                      # tokenizer.* entries in upstream's order
    write_vocab_only(tokenizer, arch, path)   # vocabulary
    verify_vocabulary(path, directory)        # verify

A vocabulary is verified by what it does: the engine's ids against the checkpoint's own tokenizer
on a torture corpus, before the hours of quantizing.
"""
