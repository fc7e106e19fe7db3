# CLIP's text tower (ViT-B/16) in place of BERT.
_base_ = '../instalign_swinb_grefcoco.py'
model = dict(encoder=dict(text=dict(_delete_=True, type='TextEncoder', pretrained='openai/clip-vit-base-patch16')))
_tiny = dict(
    model=dict(
        encoder=dict(
            text=dict(
                _delete_=True,
                pretrained=None,
                config=dict(
                    model_type='clip_text_model',
                    vocab_size=64,
                    hidden_size=32,
                    num_attention_heads=2,
                    intermediate_size=32,
                    num_hidden_layers=1,
                ),
            )
        )
    )
)
