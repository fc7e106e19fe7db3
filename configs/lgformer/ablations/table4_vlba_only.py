# Table 4, row 2: VLBA, without L2VA and V2LA.
_base_ = '../lgformer_swinb_refcocoplus.py'
model = dict(pixel_decoder=dict(l2va=None), prototype=dict(v2la=False))
