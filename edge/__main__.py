"""`python -m edge`: the `edge` command without its script on the PATH."""

from edge.cli import main

main()
