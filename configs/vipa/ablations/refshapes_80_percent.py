# Fig. 4 on RefShapes: 80 % of the pixels are retrieved, 29 of 36.
_base_ = '../vipa_tiny_refshapes.py'
model = dict(generator=dict(ratio=0.8))
