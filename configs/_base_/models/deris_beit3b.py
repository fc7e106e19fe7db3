# DeRIS-B as published: BEiT-3-B on 224 x 224 and Mask2Former with Swin-S (window 7) on 384 x 384 pixels.
# Both branches get ImageNet's mean and standard deviation.
inputs = dict(tokenizer=dict(sentencepiece='data/weights/beit3.spm', max_words=50), image_size=(384, 384))
model = dict(
    type='DeRIS',
    encoder=dict(
        type='BEiT3Encoder',
        arch='base',
        image_size=224,
        patch_size=16,
        drop_path_rate=0.1,
        pretrained='data/weights/beit3_base_patch16_224.pth',
    ),
    vision=dict(type='SwinEncoder', arch='small', window_size=7, drop_path_rate=0.3),
    pretrained='data/weights/mask2former_swins_coco_instance.pkl',  # detectron2's file, or transformers' folder
    frozen_vision=True,
    embed_dim=256,
    pixel_decoder=dict(num_layers=6, num_heads=8, ffn_dim=1024, num_points=4, finest_relu=True),
    decoder=dict(num_queries=20, num_blocks=3, num_heads=8, ffn_dim=2048, loopback_attention='itself'),
    instances=dict(
        relevance=2.0, mask=5.0, dice=5.0, poa=0.0, unmatched=0.1, num_points=12544, relevance_cost='probability'
    ),
    auxiliary_weight=0.2,
    no_target_weight=1.0,
    postprocess=dict(instance_threshold=0.7, no_target='area', min_area=1),
)

_tiny = dict(
    model=dict(
        encoder=dict(
            arch=dict(_delete_=True, embed_dim=32, num_layers=2, num_heads=2, vocab_size=64, text_positions=40),
            image_size=64,
            pretrained=None,
        ),
        vision=dict(
            arch=dict(_delete_=True, embed_dims=16, depths=(1, 1, 1, 1), num_heads=(1, 1, 2, 2)), window_size=4
        ),
        pretrained=None,
        embed_dim=32,
        pixel_decoder=dict(num_layers=1, num_heads=2, ffn_dim=32),
        decoder=dict(num_queries=5, num_heads=2, ffn_dim=32, reader_ffn_dim=16),
        instances=dict(num_points=64),
    )
)
