# The other reading of the distributor: all subjects become their mean, not the pixels' one.
_base_ = '../latentvg_beit3b_refcocoplus.py'
model = dict(distributor='mean')
