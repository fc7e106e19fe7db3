# Components, row 3: with the subject distributor only.
_base_ = '../latentvg_beit3b_refcocoplus.py'
model = dict(concepts=None, contrast=None)
_tiny = dict(model=dict(concepts=None))
