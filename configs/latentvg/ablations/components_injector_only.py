# Components, row 4: with the visual concept injector only.
_base_ = '../latentvg_beit3b_refcocoplus.py'
model = dict(distributor=None, contrast=None)
