# N = 1. Of the two lengths the longer; which one the paper has is not told.
_base_ = '../latentvg_beit3b_refcocoplus.py'
model = dict(latents=dict(lengths=(10,), drop_rates=(0.2,)))
