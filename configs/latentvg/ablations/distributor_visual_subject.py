# Subjects become the pixels' subject, instead of the mean: the other reading of the distributor.
_base_ = '../latentvg_beit3b_refcocoplus.py'
model = dict(distributor='visual')
