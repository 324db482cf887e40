"""Importance matrices: how strongly each input column of each matrix is used, over some text.

A quantizer that has one rounds so that the columns with large activations keep their precision.

    compute(Path("model-f16.gguf"), Path("text.txt"), Path("model.imatrix.gguf"))
    write_gguf(spec, recipe, out, imatrix=read_imatrix(Path("model.imatrix.gguf")))
"""
