"""Inference: images and phrases in, masks out."""
