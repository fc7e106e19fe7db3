# Lengths: half of a text, and a whole one.
_base_ = '../latentvg_beit3b_refcocoplus.py'
model = dict(latents=dict(lengths=(10, 20)))
