# RefShapes: without the contrastive loss.
_base_ = '../latentvg_tiny_refshapes.py'
model = dict(contrast=None)
