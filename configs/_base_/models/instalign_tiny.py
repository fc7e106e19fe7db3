# InstAlign for RefShapes, from random weights: a convolutional encoder that starts at stride 2, and few of everything.
# Its losses weigh otherwise than the paper's: from random weights, masks of queries come late, and the merged mask has to
# lead. What was tried is in docs/results/refshapes.md.
model = dict(
    type='InstAlign',
    data_preprocessor=dict(type='ReferringDataPreprocessor', size_divisor=16),
    encoder=dict(
        type='FusedEncoder',
        vision=dict(type='ConvEncoder', dims=(24, 48, 96, 96), depths=(1, 2, 2, 1), stride=2),
        text=dict(
            type='TextEncoder',
            config=dict(
                model_type='bert',
                vocab_size=256,
                hidden_size=96,
                num_hidden_layers=2,
                num_attention_heads=4,
                intermediate_size=192,
                max_position_embeddings=32,
                hidden_dropout_prob=0.0,
                attention_probs_dropout_prob=0.0,
            ),
        ),
    ),
    embed_dim=96,
    mask_dim=32,
    pixel_decoder=dict(embed_dim=32, num_layers=1, num_heads=4, ffn_dim=64),
    decoder=dict(
        type='ObjectTextDecoder', num_queries=16, num_blocks=3, num_heads=4, ffn_dim=192, masked_attention=False
    ),
    instances=dict(poa=0.1, unmatched=0.5, num_points=300),
    aggregation='soft',
    no_target=dict(features='concat'),
    merged_weight=10.0,
    merged_dice_weight=10.0,
    no_target_weight=1.0,
)
