# RefShapes: InfoNCE, which has no margin.
_base_ = '../latentvg_tiny_refshapes.py'
model = dict(contrast=dict(loss='infonce'))
