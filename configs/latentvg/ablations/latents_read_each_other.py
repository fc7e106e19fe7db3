# The other reading of "self-attention": all expressions read each other. Subjects then stay alike
# by themselves.
_base_ = '../latentvg_beit3b_refcocoplus.py'
model = dict(latents=dict(apart=False))
