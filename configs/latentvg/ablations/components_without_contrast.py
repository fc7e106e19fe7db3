# Components, row 5: with distributor and injector, without the contrastive loss.
_base_ = '../latentvg_beit3b_refcocoplus.py'
model = dict(contrast=None)
