"""Importance matrices: how strongly each input column of each matrix is used, over some text.

A quantizer that has one rounds so that the columns with large activations keep their precision.

    from boardfit.converters.imatrix import compute, read_imatrix

    compute(Path("model-f16.gguf"), Path("text.txt"), Path("model.imatrix.gguf"))
    write_gguf(spec, recipe, out, imatrix=read_imatrix(Path("model.imatrix.gguf")))
"""

from boardfit.converters.formats.gguf.imatrix import Imatrix, Sums
from boardfit.converters.imatrix.collect import compute
from boardfit.converters.imatrix.files import read_imatrix, write_imatrix

__all__ = ["Imatrix", "Sums", "compute", "read_imatrix", "write_imatrix"]
