# Class tokens of the latent expressions start as small as BEiT-3's own.
_base_ = '../latentvg_beit3b_refcocoplus.py'
model = dict(latents=dict(class_token_std=0.02))
