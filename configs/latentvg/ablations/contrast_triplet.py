# Contrastive losses, triplet. Its margin is not told.
_base_ = '../latentvg_beit3b_refcocoplus.py'
model = dict(contrast=dict(loss='triplet'))
