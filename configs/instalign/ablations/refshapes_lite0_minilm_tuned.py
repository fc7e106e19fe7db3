# RefShapes with EfficientNet-Lite0, which is trained at a fiftieth of the rate, and MiniLM, frozen.
_base_ = 'refshapes_lite0_minilm.py'
model = dict(encoder=dict(vision=dict(frozen=False)))
optim_wrapper = dict(paramwise_cfg=dict(encoder_lr_mult=0.02))
