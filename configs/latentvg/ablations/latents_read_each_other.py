# All expressions read each other: the other reading of "self-attention". Subjects then stay alike by themselves.
_base_ = '../latentvg_beit3b_refcocoplus.py'
model = dict(latents=dict(apart=False))
