# Fig. 4: each cue retrieves 50 % of the pixels.
_base_ = '../vipa_swinb_refcocoplus.py'
model = dict(generator=dict(ratio=0.5))
