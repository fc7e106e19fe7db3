# N_c = 10 concepts.
_base_ = '../latentvg_beit3b_refcocoplus.py'
model = dict(concepts=dict(num_concepts=10))
_tiny = dict(model=dict(concepts=dict(num_concepts=1)))
