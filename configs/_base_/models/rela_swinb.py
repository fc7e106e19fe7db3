# ReLA: Swin-B (window 12, ImageNet-22k, 384) with PWAM; BERT-base with dropout, whose embeddings and
# last two layers stay as pretrained; Mask2Former's pixel decoder; 10 x 10 regions in 9 blocks. Two
# things differ from the published code. PWAM's gates start at small random weights, as LAVT's do,
# because gates that start at zero never open (gate_init='zeros'). And regions read real words only,
# because padding means nothing (the published code has padded_words=20). All the rest is as published.
_base_ = 'swinb_bert.py'
model = dict(
    type='ReLA',
    encoder=dict(
        text=dict(
            config=dict(hidden_dropout_prob=0.1, attention_probs_dropout_prob=0.1),
            train_embeddings=False,
            trained_layers=10,
        ),
        fusion=dict(type='PWAM', gate_init='random'),
    ),
    embed_dim=256,
    mask_dim=256,
    padded_words=None,
    pixel_decoder=dict(num_layers=6, num_heads=8, ffn_dim=1024, num_points=4),
    decoder=dict(num_queries=100, num_blocks=9, num_heads=8, ffn_dim=2048, word_scale=0.1),
    class_weights=(0.9, 1.1),
    weight=5.0,
    minimap_weight=0.1,
    no_target_weight=0.1,
    minimap_target='truncated',
)

_tiny = dict(
    model=dict(
        encoder=dict(text=dict(trained_layers=2)),
        embed_dim=32,
        mask_dim=16,
        pixel_decoder=dict(num_layers=1, num_heads=2, ffn_dim=32),
        decoder=dict(num_queries=9, num_blocks=4, num_heads=2, ffn_dim=32),
    )
)
