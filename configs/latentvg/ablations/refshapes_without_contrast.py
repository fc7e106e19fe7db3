# Without the contrastive loss, on RefShapes.
_base_ = '../latentvg_tiny_refshapes.py'
model = dict(contrast=None)
