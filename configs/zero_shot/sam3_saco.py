_base_ = [
    '../_base_/datasets/saco.py',
    '../_base_/models/sam3.py',
    '../_base_/schedules/evaluation_only.py',
    '../_base_/default_runtime.py',
]
