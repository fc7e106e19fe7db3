# Attributes read concepts by the usual softmax and do not compete for them.
_base_ = '../latentvg_beit3b_refcocoplus.py'
model = dict(concepts=dict(normalize='rows'))
