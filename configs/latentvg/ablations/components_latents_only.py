# Components, row 2: latent expressions only.
_base_ = '../latentvg_beit3b_refcocoplus.py'
model = dict(distributor=None, concepts=None, contrast=None)
_tiny = dict(model=dict(concepts=None))
