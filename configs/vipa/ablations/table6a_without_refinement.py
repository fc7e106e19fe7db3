# Table VI a, row 2: no refinement. Retrieved pixels are only summed up. Two layers of words keep
# the size.
_base_ = '../vipa_swinb_refcocoplus.py'
model = dict(generator=dict(refine=False), word_layers=2)
