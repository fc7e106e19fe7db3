# ReLA for RefShapes, from random weights: a convolutional encoder that starts at stride 2, and few of everything. 6 x 6
# regions of 16 pixels, about the size of its small shapes; 10 x 10 would be finer than stride 8.
model = dict(
    type='ReLA',
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
        fusion=dict(type='PWAM'),
    ),
    embed_dim=96,
    mask_dim=32,
    pixel_decoder=dict(embed_dim=32, num_layers=1, num_heads=4, ffn_dim=64),
    decoder=dict(num_queries=36, num_blocks=3, num_heads=4, ffn_dim=192),
    minimap_target='covered',  # regions of 16 pixels: what lies around their middle alone would miss small shapes
)
