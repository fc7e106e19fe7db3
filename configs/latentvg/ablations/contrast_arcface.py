# Contrastive losses: ArcFace, with the margin of its own paper, half a radian.
_base_ = '../latentvg_beit3b_refcocoplus.py'
model = dict(contrast=dict(loss='arcface', margin=0.5))
