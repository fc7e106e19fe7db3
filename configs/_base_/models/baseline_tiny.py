model = dict(
    type='QueryBaseline',
    data_preprocessor=dict(type='ReferringDataPreprocessor', size_divisor=16),
    text_encoder=dict(
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
    embed_dim=128,
    mask_dim=32,
    num_encoder_layers=1,
    num_decoder_layers=3,
)
