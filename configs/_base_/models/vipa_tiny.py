# VIPA for RefShapes, from random weights: the encoders of conv_bert_tiny, BERT cut in its middle. r = 0.3 is 11 of 36 pixels.
_base_ = 'conv_bert_tiny.py'
model = dict(
    type='VIPA',
    encoder=dict(text=dict(stages=(1, 1)), fusion=dict(type='StagedCrossAttention', head_dim=24)),
    num_heads=4,
    generator=dict(joint_dim=96, ratio=0.3),
    decoder=dict(width=48),
)
