# The subject's scores have no LayerNorm before them.
_base_ = '../latentvg_beit3b_refcocoplus.py'
model = dict(latents=dict(score_norm=False))
