# DINOv3 ViT-B/16 of timm, with a pyramid.
_base_ = '../instalign_swinb_grefcoco.py'
model = dict(
    encoder=dict(
        vision=dict(_delete_=True, type='TimmEncoder', name='vit_base_patch16_dinov3.lvd1689m', pretrained=True)
    )
)
_tiny = dict(
    model=dict(
        encoder=dict(vision=dict(_delete_=True, name='vit_small_patch16_dinov3', options=dict(depth=1), pyramid_dim=32))
    )
)
