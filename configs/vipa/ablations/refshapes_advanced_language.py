# RefShapes, Table V, row 2: pixels read words that have seen the image. Two layers of words keep
# the size.
_base_ = '../vipa_tiny_refshapes.py'
model = dict(key_values='language', word_layers=2, cues=None, generator=None, supervision=dict(scores=None))
