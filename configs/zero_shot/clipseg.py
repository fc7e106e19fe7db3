_base_ = [
    '../_base_/datasets/grefcoco.py',
    '../_base_/models/clipseg.py',
    '../_base_/schedules/adamw_cosine.py',
    '../_base_/default_runtime.py',
]
