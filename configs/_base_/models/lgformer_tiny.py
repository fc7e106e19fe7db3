# LGFormer for RefShapes, from random weights: the encoders of lavt_tiny, 64 channels, and as few layers as read every level once.
_base_ = ['lavt_tiny.py']
model = dict(
    type='LGFormer',
    encoder=dict(fusion=dict(type='VLBA')),
    embed_dim=64,
    pixel_decoder=dict(num_layers=2, num_heads=4, ffn_dim=128, lateral=True),
    prototype=dict(num_layers=3, num_heads=4, ffn_dim=256),
)
