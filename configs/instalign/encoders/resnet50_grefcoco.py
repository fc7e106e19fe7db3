# mmdet's ResNet-50 (ImageNet-1k), wrapped by `BackboneEncoder`.
_base_ = '../instalign_swinb_grefcoco.py'
model = dict(
    encoder=dict(
        vision=dict(
            _delete_=True,
            type='mmdet.ResNet',
            depth=50,
            init_cfg=dict(type='Pretrained', checkpoint='data/weights/resnet50-11ad3fa6.pth'),
        )
    )
)
_tiny = dict(model=dict(encoder=dict(vision=dict(_delete_=True, depth=18, base_channels=8))))
