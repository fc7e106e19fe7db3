# The base of `refseg finetune`, which sets the data, image size, batch, and length of the training.
_base_ = [
    '../_base_/datasets/jsonl.py',
    '../_base_/models/instalign_small.py',
    '../_base_/schedules/finetune.py',
    '../_base_/default_runtime.py',
]
_load = [dict(type='LoadImage'), dict(type='RandomFlip'), dict(type='Resize'), dict(type='LoadText')]
train_dataloader = dict(dataset=dict(expressions_per_image=8, pipeline=[*_load, dict(type='PackSample')]))
default_hooks = dict(
    logger=dict(interval=10),
    checkpoint=dict(by_epoch=False, interval=50, max_keep_ckpts=1),
)
custom_hooks = [
    dict(type='StepSeedHook'),
    dict(type='NonFiniteLossHook', max_in_a_row=5),
    dict(type='TextTruncationHook'),
    dict(type='ProgressBarHook', always=True),
    dict(type='EarlyStoppingHook', monitor='refseg/gIoU', rule='greater', min_delta=0.2, patience=4),
]
