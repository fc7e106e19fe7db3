# RefShapes, Table VII, early fusion without VE: pixels read words that have seen the image at every
# stage but the last. Two layers of words keep the size.
_base_ = 'refshapes_early_fusion.py'
model = dict(key_values='language', word_layers=2, cues=None, generator=None, supervision=dict(scores=None))
