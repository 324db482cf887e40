"""Chat templates: rendered in a sandbox, under limits."""
