"""Measurements on trained models: probes, alignment, calibration, and the claims of single papers."""
