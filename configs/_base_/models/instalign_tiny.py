# InstAlign for RefShapes, from random weights: a convolutional encoder that starts at stride 2, and few of everything.
model = dict(
    type='InstAlign',
    data_preprocessor=dict(type='ReferringDataPreprocessor', size_divisor=16),
    encoder=dict(
        type='FusedEncoder',
        vision=dict(type='ConvEncoder', dims=(32, 64, 128, 128), depths=(1, 1, 1, 1), stride=2),
        text=dict(
            type='TextEncoder',
            config=dict(
                model_type='bert',
                vocab_size=256,
                hidden_size=128,
                num_hidden_layers=2,
                num_attention_heads=4,
                intermediate_size=256,
                max_position_embeddings=32,
                hidden_dropout_prob=0.0,
                attention_probs_dropout_prob=0.0,
            ),
        ),
    ),
    embed_dim=128,
    mask_dim=32,
    pixel_decoder=dict(num_layers=1, num_heads=4, ffn_dim=256),
    decoder=dict(type='ObjectTextDecoder', num_queries=12, num_blocks=3, num_heads=4, ffn_dim=256),
    instances=dict(num_points=None),
    aggregation='soft',
    no_target=dict(features='concat'),
    merged_weight=1.0,
    no_target_weight=0.1,
)
