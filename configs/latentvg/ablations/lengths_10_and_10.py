# Lengths: both long.
_base_ = '../latentvg_beit3b_refcocoplus.py'
model = dict(latents=dict(lengths=(10, 10)))
