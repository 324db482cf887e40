"""Signatures: identify the builder of a bundle, and decide whether a board accepts it.

A signature lies beside the manifest, which holds the hash of every other file. Formats are
OpenSSH's: a key is one `ssh-ed25519` line, and `ssh-keygen -Y verify` checks what is signed here.
"""
