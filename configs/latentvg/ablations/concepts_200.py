# N_c = 200 concepts.
_base_ = '../latentvg_beit3b_refcocoplus.py'
model = dict(concepts=dict(num_concepts=200))
_tiny = dict(model=dict(concepts=dict(num_concepts=20)))
