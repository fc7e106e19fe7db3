# InstAlign for RefShapes, trained from random weights, at a small size. Its loss weights differ
# from the paper's: from random weights the query masks improve late, so the merged mask has to
# lead. docs/results/instalign.md lists what was tried.
_base_ = 'conv_bert_tiny.py'
model = dict(
    type='InstAlign',
    embed_dim=96,
    mask_dim=32,
    pixel_decoder=dict(embed_dim=32, num_layers=1, num_heads=4, ffn_dim=64),
    decoder=dict(type='ObjectTextDecoder', num_queries=16, num_blocks=3, num_heads=4, ffn_dim=192),
    instances=dict(poa=1.0, unmatched=0.5, num_points=112),
    aggregation='soft',
    no_target=dict(features='concat_mask'),  # "concat", the paper's, hardly tells phrases apart here
    merged_weight=10.0,
    merged_dice_weight=10.0,
    no_target_weight=3.0,
    init='heads',
)
