# Fig. 4: 50 % of the pixels are retrieved.
_base_ = '../vipa_swinb_refcocoplus.py'
model = dict(generator=dict(ratio=0.5))
