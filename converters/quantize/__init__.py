"""From a `ModelSpec` to a GGUF file in one pass: quantize, write, hash, resume.

from boardfit.converters.quantize import write_gguf
from boardfit.converters.recipes import load_recipe

artifact = write_gguf(spec, load_recipe("q4_k_m"), Path("model.gguf"))
"""

from boardfit.converters.quantize.write import Artifact, write_gguf, write_many

__all__ = ["Artifact", "write_gguf", "write_many"]
