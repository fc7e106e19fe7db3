# Parts without pretrained weights learn 10 times as fast as BEiT-3, as in C3VG (DeRIS: 2 times).
_base_ = '../latentvg_beit3b_refcocoplus.py'
optim_wrapper = dict(paramwise_cfg=dict(new_parts_lr_mult=10.0))
