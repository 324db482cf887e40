"""`edge watch`: what runs on a board now, read from outside the process that runs it."""
