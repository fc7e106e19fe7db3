# Fig. 4 on RefShapes: 10 % of the pixels are retrieved, 4 of 36.
_base_ = '../vipa_tiny_refshapes.py'
model = dict(generator=dict(ratio=0.1))
