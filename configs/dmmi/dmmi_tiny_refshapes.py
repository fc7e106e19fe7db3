_base_ = [
    '../_base_/datasets/refshapes_mini.py',
    '../_base_/models/dmmi_tiny.py',
    '../_base_/schedules/adamw_cosine.py',
    '../_base_/default_runtime.py',
]
train_cfg = dict(max_epochs=6, val_interval=2)
auto_scale_lr = dict(base_batch_size=8)
default_hooks = dict(checkpoint=dict(interval=2), logger=dict(interval=50))
