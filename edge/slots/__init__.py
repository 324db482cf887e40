"""The releases on a board: side by side, one of them current, switched by one rename.

docs/flash.md draws the tree. `layout` names the places and decides (pure), `files` is the base for
a board's files with its local implementation, `store` does the work over any implementation,
`health` judges a release by loading it and asking it something.
"""
