_base_ = [
    '../_base_/datasets/refshapes_mini.py',
    '../_base_/models/baseline_tiny.py',
    '../_base_/schedules/adamw_cosine.py',
    '../_base_/default_runtime.py',
]
train_cfg = dict(max_epochs=4, val_interval=2)
auto_scale_lr = dict(base_batch_size=8)
default_hooks = dict(checkpoint=dict(interval=2), logger=dict(interval=25))
custom_hooks = [
    dict(type='StepSeedHook'),
    dict(type='NonFiniteLossHook', max_in_a_row=5),
    dict(type='TextTruncationHook'),
    dict(type='ProgressBarHook'),
]
