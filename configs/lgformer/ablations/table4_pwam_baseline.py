# Table 4, row 1: the baseline with PWAM in place of VLBA, without L2VA and V2LA.
_base_ = '../lgformer_swinb_refcocoplus.py'
model = dict(
    encoder=dict(fusion=dict(_delete_=True, type='PWAM')), pixel_decoder=dict(l2va=None), prototype=dict(v2la=False)
)
