# N = 1, with the longer of the two lengths. The paper's choice is not given.
_base_ = '../latentvg_beit3b_refcocoplus.py'
model = dict(latents=dict(lengths=(10,), drop_rates=(0.2,)))
