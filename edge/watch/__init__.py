"""`edge watch`: show what runs on a board, read from outside its processes."""
