"""Signatures: identify the builder of a bundle, and decide whether a board accepts it.

A signature lies beside the manifest, which holds the hash of every other file. Formats are
OpenSSH's: a key is one `ssh-ed25519` line, `ssh-keygen -Y verify` checks what is signed here.
`ed25519` verifies (pure Python), `ssh_formats` reads and writes keys and signatures,
`bundle_signature` finds who signed a bundle, `pins` which keys a place accepts, `signing` signs.
"""
