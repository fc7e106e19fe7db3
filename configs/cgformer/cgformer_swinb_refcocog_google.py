_base_ = [
    '../_base_/datasets/refcocog_google.py',
    '../_base_/models/cgformer_swinb.py',
    '../_base_/schedules/adamw_poly_cgformer.py',
    '../_base_/default_runtime.py',
]
train_dataloader = dict(batch_size=16)
