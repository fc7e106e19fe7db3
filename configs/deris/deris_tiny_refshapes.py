_base_ = [
    '../_base_/datasets/refshapes_mini.py',
    '../_base_/models/deris_tiny.py',
    '../_base_/schedules/refshapes_mini.py',
    '../_base_/default_runtime.py',
]
default_hooks = dict(logger=dict(interval=25))
