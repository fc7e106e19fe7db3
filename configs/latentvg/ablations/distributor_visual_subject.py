# The other reading of the distributor: subjects become the subject of the pixels, not the mean.
_base_ = '../latentvg_beit3b_refcocoplus.py'
model = dict(distributor='visual')
