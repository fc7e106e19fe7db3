# The other reading of "averaged": the mean of the expressions' logits, not of their probabilities.
_base_ = '../latentvg_beit3b_refcocoplus.py'
model = dict(decoder=dict(average='logits'))
