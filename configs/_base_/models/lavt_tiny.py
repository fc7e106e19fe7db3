# LAVT for RefShapes, trained from random weights: a Swin with 4 small stages and a BERT with 2
# layers.
model = dict(
    type='LAVT',
    data_preprocessor=dict(type='ReferringDataPreprocessor', size_divisor=32),
    encoder=dict(
        type='FusedEncoder',
        vision=dict(
            type='SwinEncoder',
            arch=dict(embed_dims=16, depths=(2, 2, 2, 2), num_heads=(1, 2, 4, 8)),
            window_size=6,
            drop_path_rate=0.0,
        ),
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
        fusion=dict(type='PWAM'),
    ),
)
