# Table VIII, row 2: scores on the wrong side of a threshold are penalized. Row 3 is
# vipa_swinb_refcocoplus.
_base_ = '../vipa_swinb_refcocoplus.py'
model = dict(supervision=dict(scores='direct'))
