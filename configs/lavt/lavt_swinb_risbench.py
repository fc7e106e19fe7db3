_base_ = [
    '../_base_/datasets/risbench.py',
    '../_base_/models/lavt_swinb.py',
    '../_base_/schedules/adamw_poly.py',
    '../_base_/default_runtime.py',
]
