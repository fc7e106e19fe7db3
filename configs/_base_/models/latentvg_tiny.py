# Latent-VG for RefShapes, trained from random weights: a BEiT-3 with 6 layers, 12 x 12 patches of
# 8, masks at stride 2. `num_words` is the length of RefShapes' tokenizer.
model = dict(
    type='LatentVG',
    data_preprocessor=dict(type='ReferringDataPreprocessor', size_divisor=8),
    encoder=dict(
        type='BEiT3Encoder',
        arch=dict(embed_dim=96, num_layers=6, num_heads=4, ffn_ratio=2, vocab_size=256, text_positions=32),
        image_size=96,
        patch_size=8,
        first_positions='waves',
        drop_path_rate=0.0,
    ),
    latents=dict(lengths=(4, 10), drop_rates=(0.4, 0.2), num_words=24),
    distributor='visual',
    concepts=dict(num_concepts=16),
    contrast=dict(loss='positive_margin', margin=0.2, weight=0.1),
    decoder=dict(width=48),
    weights=dict(no_target=0.5),
    empty_token=True,
)
