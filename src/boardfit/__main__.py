"""`python -m boardfit`: the `edge` command without its script on the PATH."""

from boardfit.edge import __main__  # noqa: F401
