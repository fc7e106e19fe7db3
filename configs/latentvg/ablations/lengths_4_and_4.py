# Lengths: both short. The paper found 4 and 10 best; what it compared is not told.
_base_ = '../latentvg_beit3b_refcocoplus.py'
model = dict(latents=dict(lengths=(4, 4)))
