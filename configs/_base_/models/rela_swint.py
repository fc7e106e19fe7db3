# ReLA with Swin-T (window 7, ImageNet-1k, 224), for which the published code has a config.
_base_ = ['rela_swinb.py']
model = dict(
    encoder=dict(
        vision=dict(arch='tiny', window_size=7, pretrained='data/weights/swin_tiny_patch4_window7_224.pth'),
    ),
)
