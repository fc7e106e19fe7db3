# InstAlign: Swin-B (window 12, ImageNet-22k) and BERT-base without fusion, Mask2Former's pixel
# decoder, 9 decoder blocks. The number of blocks, the learning rate, and the instance weights are
# illegible in our copy of the paper, so they are Mask2Former's, on which it builds. The published
# code of VATEX (the paper's reference 27), which builds on Mask2Former too, has the same values.
_base_ = 'swinb_bert.py'
model = dict(
    type='InstAlign',
    embed_dim=256,
    mask_dim=256,
    pixel_decoder=dict(num_layers=6, num_heads=8, ffn_dim=1024, num_points=4),
    decoder=dict(type='ObjectTextDecoder', num_queries=100, num_blocks=9, num_heads=8, ffn_dim=2048),
    instances=dict(relevance=2.0, mask=5.0, dice=5.0, poa=1.0, unmatched=0.1, num_points=12544),
    aggregation='soft',
    no_target=dict(features='concat'),
    instance_weight=1.0,
    merged_weight=1.0,
    no_target_weight=0.1,
    init='mask2former',
    relevance_prior=0.1,  # ours: with 0.5, the merged mask's loss has most of the first step's gradient
)

_tiny = dict(
    model=dict(
        embed_dim=32,
        mask_dim=16,
        pixel_decoder=dict(num_layers=1, num_heads=2, ffn_dim=32),
        decoder=dict(num_queries=5, num_heads=2, ffn_dim=32),
        instances=dict(num_points=64),
    )
)
