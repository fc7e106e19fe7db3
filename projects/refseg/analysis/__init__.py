"""Measurements on trained models: probes, alignment, calibration, and claims of single papers."""
