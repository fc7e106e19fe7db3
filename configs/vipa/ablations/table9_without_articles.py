# Table IX: articles are not cues.
_base_ = '../vipa_swinb_refcocoplus.py'
model = dict(cues=dict(without_words=('a', 'an', 'the')))
