"""Fine-tuning on the user's own images with one command: it plans, writes a config, trains, calibrates and reports."""
