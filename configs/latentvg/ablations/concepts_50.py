# N_c = 50 concepts.
_base_ = '../latentvg_beit3b_refcocoplus.py'
model = dict(concepts=dict(num_concepts=50))
_tiny = dict(model=dict(concepts=dict(num_concepts=5)))
