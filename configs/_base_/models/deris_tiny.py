# DeRIS for RefShapes, trained from random weights: a BEiT-3 with 4 layers on 12 x 12 patches, and a
# convolutional encoder that starts at stride 2.
model = dict(
    type='DeRIS',
    data_preprocessor=dict(type='ReferringDataPreprocessor', size_divisor=16),
    encoder=dict(
        type='BEiT3Encoder',
        arch=dict(embed_dim=96, num_layers=4, num_heads=4, ffn_ratio=2, vocab_size=256, text_positions=32),
        image_size=96,
        patch_size=8,
        first_positions='waves',
        drop_path_rate=0.0,
    ),
    vision=dict(type='ConvEncoder', dims=(24, 48, 96, 96), depths=(1, 2, 2, 1), stride=2),
    frozen_vision=False,
    embed_dim=64,
    pixel_decoder=dict(num_layers=1, num_heads=4, ffn_dim=64),
    decoder=dict(num_queries=16, num_blocks=3, num_heads=4, ffn_dim=128, reader_ffn_dim=128, dropout=0.0),
    instances=dict(poa=0.0, unmatched=0.5, num_points=112, relevance_cost='probability'),
    postprocess=dict(instance_threshold=0.5, no_target='area', min_area=1),
)
