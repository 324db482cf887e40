"""Signatures: identify the builder of a bundle, and decide whether a board accepts it.

A signature lies beside the manifest, which holds the hash of every other file, so that one
signature covers a bundle whole. Formats are OpenSSH's: a key is one `ssh-ed25519` line, a signature
is what `ssh-keygen -Y sign` writes, and `ssh-keygen -Y verify` checks it where there is no
boardfit.

`ed25519` verifies (pure Python), `ssh_formats` reads and writes keys and signatures,
`bundle_signature` finds who signed a bundle, `pins` which keys a place accepts, and `signing` makes
keys and signatures on the host.
"""
