# Every phrase refers to something.
_base_ = [
    '../_base_/datasets/refcocog.py',
    '../_base_/models/clipseg.py',
    '../_base_/schedules/adamw_cosine.py',
    '../_base_/default_runtime.py',
]

model = dict(postprocess=dict(no_target='none'))
