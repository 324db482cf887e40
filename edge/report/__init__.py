"""Reports from stored results. Nothing here opens an engine or measures anything."""
