# Table 4, row 3: VLBA and L2VA, without V2LA. Row 4 is lgformer_swinb_refcocoplus.
_base_ = '../lgformer_swinb_refcocoplus.py'
model = dict(prototype=dict(v2la=False))
