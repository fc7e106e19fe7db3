"""Data: annotation files -> records -> samples -> batches. Import from the modules: reading files needs no torch."""
