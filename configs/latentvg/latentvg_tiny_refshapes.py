_base_ = [
    '../_base_/datasets/refshapes_mini.py',
    '../_base_/models/latentvg_tiny.py',
    '../_base_/schedules/refshapes_mini.py',
    '../_base_/default_runtime.py',
]
train_cfg = dict(max_epochs=1, val_interval=1)
default_hooks = dict(logger=dict(interval=25))
