_base_ = [
    '../_base_/datasets/rrefcocog.py',
    '../_base_/models/instalign_swinb.py',
    '../_base_/schedules/adamw_linear.py',
    '../_base_/default_runtime.py',
]
