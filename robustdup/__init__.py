"""robustdup."""
