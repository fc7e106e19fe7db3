# RefShapes with two pretrained encoders, frozen: EfficientNet-Lite0 from stride 2 on, and MiniLM.
_base_ = 'refshapes_minilm.py'
model = dict(
    encoder=dict(
        vision=dict(
            _delete_=True,
            type='TimmEncoder',
            name='tf_efficientnet_lite0',
            pretrained='efficientnet_lite0',
            out_indices=(0, 1, 2, 3),
            frozen=True,
        )
    )
)
