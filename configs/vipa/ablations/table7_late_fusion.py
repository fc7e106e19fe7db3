# Table VII, late fusion with VE: pixels and words read each other once, after all layers of both
# encoders.
_base_ = '../vipa_swinb_refcocoplus.py'
model = dict(encoder=dict(text=dict(stages=None), fusion=dict(updates_words='always'), fused_stages=(3,)))
