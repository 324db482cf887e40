"""Model families: tensor names, permutations, metadata and quirks, one family per file."""
