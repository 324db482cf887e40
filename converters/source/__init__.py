"""Where models come from: a Hugging Face directory, a hub repo id, a GGUF file. All become one
`ModelSpec` with lazy tensors. `open_model` in `boardfit.converters.source.resolve` is the entrance.
"""
