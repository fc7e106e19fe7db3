# RefShapes with MiniLM, which is trained at a fiftieth of the rate.
_base_ = 'refshapes_minilm.py'
model = dict(encoder=dict(text=dict(frozen=False)))
optim_wrapper = dict(paramwise_cfg=dict(custom_keys={'encoder.text.': dict(lr_mult=0.02)}))
