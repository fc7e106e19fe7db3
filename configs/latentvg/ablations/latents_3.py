# N = 3. The third length continues the first two. The paper's choice is not given.
_base_ = '../latentvg_beit3b_refcocoplus.py'
model = dict(latents=dict(lengths=(4, 10, 16), drop_rates=(0.4, 0.2, 0.1)))
