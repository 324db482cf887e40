"""The quality card: how far an artifact's next-token distributions are from its source's.

    divergence.py    the formulas, pure
    texts.py         what is read: named texts, and the sample model's own domain
    reference.py     the source's log-probabilities, computed once and cached
    card.py          all of it for one artifact, and how far its recipe may be from its source
    building.py      the cards of a build; cosines for embedding models

The same tokens, windows and formula serve every format, so that formats can be compared. See
docs/quality.md.
"""
