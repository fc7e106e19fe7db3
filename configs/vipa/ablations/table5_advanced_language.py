# Table V, row 2, and Table VII, early fusion without VE: pixels read words that have seen the
# image. Two layers of words keep the size. Row 3 is vipa_swinb_refcocoplus.
_base_ = '../vipa_swinb_refcocoplus.py'
model = dict(key_values='language', word_layers=2, cues=None, generator=None, supervision=dict(scores=None))
