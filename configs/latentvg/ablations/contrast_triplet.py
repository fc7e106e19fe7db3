# Contrastive losses: triplet. Its margin is not given.
_base_ = '../latentvg_beit3b_refcocoplus.py'
model = dict(contrast=dict(loss='triplet'))
