# RefShapes: no latent expressions.
_base_ = '../latentvg_tiny_refshapes.py'
model = dict(latents=None, distributor=None, concepts=None, contrast=None)
