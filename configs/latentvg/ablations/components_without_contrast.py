# Components, row 5: with both, without the contrastive loss.
_base_ = '../latentvg_beit3b_refcocoplus.py'
model = dict(contrast=None)
