# Not in the paper: eq. 2 without noise, so that words retrieve in training what they retrieve at test time.
_base_ = '../vipa_tiny_refshapes.py'
model = dict(generator=dict(noise=0.0))
