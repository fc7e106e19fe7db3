# CGFormer for RefShapes, trained from random weights: the encoders of lavt_tiny.py, tables of
# positions for 96 x 96, a learned temperature.
_base_ = ['lavt_tiny.py']
model = dict(
    type='CGFormer',
    encoder=dict(fusion=dict(num_heads=4)),
    decoder=dict(embed_dim=32, position_sides=(6, 12, 24), dropout=0.0, log_temperature=-0.1),
)
