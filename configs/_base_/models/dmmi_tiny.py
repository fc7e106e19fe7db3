# DMMI for RefShapes, trained from random weights: the encoders of lavt_tiny.py.
_base_ = 'lavt_tiny.py'
model = dict(
    type='DMMI',
    encoder=dict(fusion=dict(type='MultiScaleFusion')),
    num_words=24,
    layer=dict(num_heads=4, ffn_dim=256, dropout=0.0),
)
