# ConvNeXt V2-B (ImageNet-22k, 384) of timm.
_base_ = '../instalign_swinb_grefcoco.py'
model = dict(
    encoder=dict(
        vision=dict(
            _delete_=True,
            type='TimmEncoder',
            name='convnextv2_base.fcmae_ft_in22k_in1k_384',
            pretrained=True,
            drop_path_rate=0.3,
        )
    )
)
_tiny = dict(
    model=dict(encoder=dict(vision=dict(_delete_=True, name='convnextv2_atto', options=dict(depths=(1, 1, 1, 1)))))
)
