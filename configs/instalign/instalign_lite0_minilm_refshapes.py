_base_ = [
    '../_base_/datasets/refshapes_mini_shared.py',
    '../_base_/models/instalign_lite0_minilm.py',
    '../_base_/schedules/refshapes_mini.py',
    '../_base_/default_runtime.py',
]
default_hooks = dict(logger=dict(interval=25))
custom_hooks = [
    dict(type='StepSeedHook'),
    dict(type='NonFiniteLossHook', max_in_a_row=5),
    dict(type='TextTruncationHook'),
    dict(type='ProgressBarHook'),
]
