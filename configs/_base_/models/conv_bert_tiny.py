# Encoders for RefShapes, trained from random weights: a convolutional encoder that starts at stride
# 2, and a BERT with two layers. InstAlign, ReLA, and VIPA share them, so that they are comparable.
model = dict(
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
)
