# ReLA with Swin-T (window 7, ImageNet-1k, 224), one of the configs of the published code.
_base_ = ['rela_swinb.py']
model = dict(
    encoder=dict(
        vision=dict(arch='tiny', window_size=7, pretrained='data/weights/swin_tiny_patch4_window7_224.pth'),
    ),
)
