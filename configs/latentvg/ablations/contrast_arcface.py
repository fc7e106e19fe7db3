# Contrastive losses, ArcFace; its own paper's margin, half a radian.
_base_ = '../latentvg_beit3b_refcocoplus.py'
model = dict(contrast=dict(loss='arcface', margin=0.5))
