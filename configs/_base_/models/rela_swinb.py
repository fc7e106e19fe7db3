# ReLA as published: Swin-B (window 12, ImageNet-22k, 384) with PWAM, BERT-base, whose embeddings and last two layers stay
# as pretrained and whose dropout is on, Mask2Former's pixel decoder, 10 x 10 regions in 9 blocks.
model = dict(
    type='ReLA',
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
            config=dict(model_type='bert', hidden_dropout_prob=0.1, attention_probs_dropout_prob=0.1),
            train_embeddings=False,
            trained_layers=10,
        ),
        # gate_std=0.0 is the published code: gates that never open. The fusion is LAVT's, whose gates learn.
        fusion=dict(type='PWAM', gate_std=0.02),
    ),
    embed_dim=256,
    mask_dim=256,
    pixel_decoder=dict(num_layers=6, num_heads=8, ffn_dim=1024, num_points=4),
    decoder=dict(num_queries=100, num_blocks=9, num_heads=8, ffn_dim=2048, word_scale=0.1),
    class_weights=(0.9, 1.1),
    weight=5.0,
    minimap_weight=0.1,
    no_target_weight=0.1,
    minimap_target='truncated',
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
                    vocab_size=64, hidden_size=32, num_attention_heads=2, intermediate_size=32, num_hidden_layers=3
                ),
                trained_layers=2,
            ),
        ),
        embed_dim=32,
        mask_dim=16,
        pixel_decoder=dict(num_layers=1, num_heads=2, ffn_dim=32),
        decoder=dict(num_queries=9, num_blocks=4, num_heads=2, ffn_dim=32),
    )
)
