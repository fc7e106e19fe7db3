# RefShapes: attributes do not compete for concepts.
_base_ = '../latentvg_tiny_refshapes.py'
model = dict(concepts=dict(normalize='rows'))
