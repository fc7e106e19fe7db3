# RefShapes, not in the paper: eq. 2 without noise, so that words retrieve the same pixels in
# training as at test time.
_base_ = '../vipa_tiny_refshapes.py'
model = dict(generator=dict(noise=0.0))
