"""The releases on a board: side by side, one of them current, switched by one rename.

    ROOT/
      current             → releases/<id>; a small file of that text where links do not exist
      releases/<id>/      bundle/ is the exact bundle, env/ the Python environment made from it
      incoming/           what is being sent; never looked at by anything that runs
      */.boardfit-owned   in every folder that may be deleted: a release, what is being sent
      state.json          the order in which releases became current, and how they did
      .lock               held by the program that changes the board

`layout` names the places and decides (pure), `files` is the protocol for a board's files with its
local implementation, `store` does the work over any implementation, `health` judges a release by
loading it and asking it something.
"""
