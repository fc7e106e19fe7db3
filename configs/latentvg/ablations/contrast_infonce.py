# Contrastive losses: InfoNCE.
_base_ = '../latentvg_beit3b_refcocoplus.py'
model = dict(contrast=dict(loss='infonce'))
