# GRES: the empty token's score rejects a phrase.
_base_ = [
    '../_base_/datasets/grefcoco.py',
    '../_base_/models/latentvg_beit3b.py',
    '../_base_/schedules/adamw_poly_latentvg.py',
    '../_base_/default_runtime.py',
]
model = dict(empty_token=True)
train_dataloader = dict(batch_size=16)
