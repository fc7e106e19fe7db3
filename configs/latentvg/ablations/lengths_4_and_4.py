# Lengths: both short. The paper found 4 and 10 best; which others it compared is not given.
_base_ = '../latentvg_beit3b_refcocoplus.py'
model = dict(latents=dict(lengths=(4, 4)))
