# The published 0.235 TFLOPs are either true FLOPs at 480 x 480 or multiply-accumulates at about this size.
_base_ = [
    '../_base_/datasets/grefcoco_640.py',
    '../_base_/models/instalign_swinb.py',
    '../_base_/schedules/adamw_linear.py',
    '../_base_/default_runtime.py',
]
