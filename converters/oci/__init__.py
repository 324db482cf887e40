"""Bundles in OCI registries, as ModelPack artifacts: one file per layer, nothing packed.

`artifact` is the manifest (pure: bundle to JSON and back, hostile until checked), `credentials` and
`registry` take a name apart and speak the distribution API, `push` and `pull` move the files.

Why not the oras library: its pull compares no digest and resumes nothing (0.2.43: a byte flipped in
the registry's store arrives unnoticed), it keeps one token for every purpose and forever, and it
sends credentials to any realm that a server names. What is left of it would be a thin wrapper over
an HTTP client, which `httpx` is; huggingface_hub brings that already.
"""
