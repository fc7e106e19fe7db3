# InstAlign: Swin-B (window 12, ImageNet-22k) and BERT-base without fusion, Mask2Former's pixel decoder, 9 decoder blocks.
# The paper lost its number of blocks, learning rate and instance weights in print: Mask2Former's, on which it is built.
model = dict(
    type='InstAlign',
    data_preprocessor=dict(type='ReferringDataPreprocessor', size_divisor=32),
    encoder=dict(
        type='FusedEncoder',
        vision=dict(
            type='SwinEncoder',
            arch='base',
            window_size=12,
            drop_path_rate=0.3,
            pretrained='data/weights/swin_base_patch4_window12_384_22k.pth',
        ),
        text=dict(
            type='TextEncoder',
            pretrained='bert-base-uncased',
            config=dict(model_type='bert', hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0),
        ),
    ),
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
)

# How the tests shrink it.
_tiny = dict(
    model=dict(
        encoder=dict(
            vision=dict(
                arch=dict(_delete_=True, embed_dims=16, depths=(1, 1, 2, 1), num_heads=(1, 2, 2, 4)),
                window_size=4,
                pretrained=None,
            ),
            text=dict(
                pretrained=None,
                config=dict(
                    vocab_size=64, hidden_size=32, num_attention_heads=2, intermediate_size=32, num_hidden_layers=2
                ),
            ),
        ),
        embed_dim=32,
        mask_dim=16,
        pixel_decoder=dict(num_layers=1, num_heads=2, ffn_dim=32),
        decoder=dict(num_queries=5, num_heads=2, ffn_dim=32),
        instances=dict(num_points=64),
    )
)
