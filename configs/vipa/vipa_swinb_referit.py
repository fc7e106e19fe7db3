_base_ = [
    '../_base_/datasets/referit.py',
    '../_base_/models/vipa_swinb.py',
    '../_base_/schedules/adamw_poly_vipa.py',
    '../_base_/default_runtime.py',
]
train_dataloader = dict(batch_size=4)
