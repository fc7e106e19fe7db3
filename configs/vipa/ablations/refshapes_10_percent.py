# RefShapes, Fig. 4: each cue retrieves 10 % of the pixels, 4 of 36.
_base_ = '../vipa_tiny_refshapes.py'
model = dict(generator=dict(ratio=0.1))
