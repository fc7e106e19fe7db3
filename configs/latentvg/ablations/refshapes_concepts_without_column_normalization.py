# Attributes do not compete for concepts, on RefShapes.
_base_ = '../latentvg_tiny_refshapes.py'
model = dict(concepts=dict(normalize='rows'))
