# Table VIII, row 1: scores are not supervised.
_base_ = '../vipa_swinb_refcocoplus.py'
model = dict(supervision=dict(scores=None))
