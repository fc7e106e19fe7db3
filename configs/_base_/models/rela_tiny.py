# ReLA for RefShapes, trained from random weights, at a small size. 6 x 6 regions of 16 pixels are
# about the size of its small shapes; 10 x 10 would be finer than stride 8. The loss weights are
# those of InstAlign on RefShapes: mask and dice 10, no-target 3.
_base_ = 'conv_bert_tiny.py'
model = dict(
    type='ReLA',
    encoder=dict(fusion=dict(type='PWAM')),
    embed_dim=96,
    mask_dim=32,
    pixel_decoder=dict(embed_dim=32, num_layers=1, num_heads=4, ffn_dim=64),
    weight=10.0,
    dice_weight=1.0,
    no_target_weight=0.3,
    decoder=dict(num_queries=36, num_blocks=3, num_heads=4, ffn_dim=192),
    minimap_target='covered',  # the pixels around a region's center alone would miss small shapes
)
