"""`python -m boardfit.edge`: the `edge` command without its script on the PATH."""

import os
import sys

# `-m` looks for every module in the current folder first. The command shall not depend on what
# lies there. `boardfit` itself has been found by now, so a checkout still works.
if sys.path[0] == os.path.abspath(".") != os.path.abspath(f"{__file__}/../../.."):
    del sys.path[0]

from boardfit.edge.supervisor import main

main()
