_base_ = [
    '../_base_/datasets/refcocog.py',
    '../_base_/models/dmmi_swinb.py',
    '../_base_/schedules/adamw_poly.py',
    '../_base_/default_runtime.py',
]
