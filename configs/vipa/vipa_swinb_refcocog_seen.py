# Table IV: trained on the seen categories, tested on the unseen ones. See
# _base_/datasets/refcocog_seen.py.
_base_ = [
    '../_base_/datasets/refcocog_seen.py',
    '../_base_/models/vipa_swinb.py',
    '../_base_/schedules/adamw_poly_vipa.py',
    '../_base_/default_runtime.py',
]
train_dataloader = dict(batch_size=4)
