# RefShapes: latent expressions only.
_base_ = '../latentvg_tiny_refshapes.py'
model = dict(distributor=None, concepts=None, contrast=None)
