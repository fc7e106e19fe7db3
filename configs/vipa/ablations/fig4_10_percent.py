# Fig. 4: 10 % of the pixels are retrieved.
_base_ = '../vipa_swinb_refcocoplus.py'
model = dict(generator=dict(ratio=0.1))
