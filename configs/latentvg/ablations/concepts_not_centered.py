# Concepts retrieve patches as they are, so that all retrieve about their mean.
_base_ = '../latentvg_beit3b_refcocoplus.py'
model = dict(concepts=dict(centered=False))
