# Components, row 1, and N = 0: no latent expressions, plain BEiT-3 with the same decoder.
_base_ = '../latentvg_beit3b_refcocoplus.py'
model = dict(latents=None, distributor=None, concepts=None, contrast=None)
_tiny = dict(model=dict(concepts=None))
