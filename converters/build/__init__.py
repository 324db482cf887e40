"""Build bundles: plan the jobs, convert, verify, seal."""
