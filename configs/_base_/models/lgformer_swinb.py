# LGFormer: LAVT's encoders, VLBA, and a decoder of 6 + 6 layers. The paper gives no width, heads,
# or points: they are Mask2Former's, on which its decoder is built. Nor does it say which part of
# BERT is trained: the same as in LAVT.
_base_ = ['lavt_swinb.py']
model = dict(
    type='LGFormer',
    encoder=dict(fusion=dict(type='VLBA'), out_stages=(1, 2, 3)),
    embed_dim=256,
    pixel_decoder=dict(num_layers=6, num_heads=8, ffn_dim=1024, num_points=4, l2va='words'),
    prototype=dict(num_layers=6, num_heads=8, ffn_dim=2048, query='linguistic', v2la=True),
)
sync_bn = None  # no BatchNorm in this model
_tiny = dict(
    model=dict(
        embed_dim=32,
        pixel_decoder=dict(num_layers=2, num_heads=2, ffn_dim=32),
        prototype=dict(num_layers=3, num_heads=2, ffn_dim=32),
    )
)
