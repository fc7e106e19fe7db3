# RefShapes, Fig. 4: each cue retrieves 80 % of the pixels, 29 of 36.
_base_ = '../vipa_tiny_refshapes.py'
model = dict(generator=dict(ratio=0.8))
