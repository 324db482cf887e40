"""Check the speed model against published rows."""
