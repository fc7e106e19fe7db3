# RefShapes, Table V, row 1: pixels read words that have not seen the image. Three layers of words
# keep the size.
_base_ = '../vipa_tiny_refshapes.py'
model = dict(
    encoder=dict(fusion=dict(updates_words='never')),
    key_values='language',
    word_layers=3,
    cues=None,
    generator=None,
    supervision=dict(scores=None),
)
