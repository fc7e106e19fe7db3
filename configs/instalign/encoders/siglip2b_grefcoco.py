# Both towers of SigLIP 2 (ViT-B/16), from transformers. The image tower gets a pyramid.
_base_ = '../instalign_swinb_grefcoco.py'
_siglip = 'google/siglip2-base-patch16-256'
model = dict(
    encoder=dict(
        vision=dict(_delete_=True, type='TransformersVisionEncoder', pretrained=_siglip),
        text=dict(_delete_=True, type='TextEncoder', pretrained=_siglip),
    )
)
_sizes = dict(hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32)
_tiny = dict(
    model=dict(
        encoder=dict(
            vision=dict(
                _delete_=True, pretrained=None, config=dict(model_type='siglip_vision_model', **_sizes), pyramid_dim=32
            ),
            text=dict(
                _delete_=True, pretrained=None, config=dict(model_type='siglip_text_model', vocab_size=64, **_sizes)
            ),
        )
    )
)
