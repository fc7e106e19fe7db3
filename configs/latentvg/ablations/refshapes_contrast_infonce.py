# InfoNCE, which has no margin, on RefShapes.
_base_ = '../latentvg_tiny_refshapes.py'
model = dict(contrast=dict(loss='infonce'))
