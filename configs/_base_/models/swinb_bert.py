# Swin-B (window 12, ImageNet-22k, 384) and BERT-base without dropout: the encoders of LAVT, ReLA,
# and InstAlign.
_text_model = 'bert-base-uncased'
inputs = dict(tokenizer=dict(pretrained=_text_model, max_words=20), image_size=(480, 480))
model = dict(
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
            pretrained=_text_model,
            config=dict(model_type='bert', hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0),
        ),
    ),
)

# Overrides for the tests.
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
            ),
        )
    )
)
