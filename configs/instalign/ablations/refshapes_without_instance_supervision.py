# Table 3a on RefShapes: no instance supervision.
_base_ = '../instalign_tiny_refshapes.py'
model = dict(instance_weight=0.0)
