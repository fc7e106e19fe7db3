# LGFormer for RefShapes, trained from random weights: the encoders of lavt_tiny.py, 64 channels,
# and just enough layers to read every level once.
_base_ = ['lavt_tiny.py']
model = dict(
    type='LGFormer',
    encoder=dict(fusion=dict(type='VLBA')),
    embed_dim=64,
    pixel_decoder=dict(num_layers=2, num_heads=4, ffn_dim=128, lateral=True),
    prototype=dict(num_layers=3, num_heads=4, ffn_dim=256),
)
