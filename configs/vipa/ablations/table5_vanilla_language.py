# Table V, row 1: pixels read words that have not seen the image. Five layers of words keep the size.
_base_ = '../vipa_swinb_refcocoplus.py'
model = dict(
    encoder=dict(fusion=dict(updates_words='never')),
    key_values='language',
    word_layers=5,
    cues=None,
    generator=None,
    supervision=dict(scores=None),
)
