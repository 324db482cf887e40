"""`python -m edge`: the `edge` command without its script on the PATH."""

from edge.supervisor import main

main()
