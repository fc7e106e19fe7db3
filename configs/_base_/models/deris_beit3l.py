# DeRIS-L as published: BEiT-3-L on 224 x 224 and Mask2Former with Swin-B (window 12) on 384 x 384
# pixels. A misspelled argument of the published code switches the drop path of BEiT-3-L off.
_base_ = 'deris_beit3b.py'
model = dict(
    encoder=dict(arch='large', drop_path_rate=0.0, pretrained='data/weights/beit3_large_patch16_224.pth'),
    vision=dict(arch='base', window_size=12),
    pretrained='data/weights/mask2former_swinb_coco_instance.pkl',
    postprocess=dict(instance_threshold=0.9),
)
