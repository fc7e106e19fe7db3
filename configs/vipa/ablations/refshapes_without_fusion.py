# RefShapes, Table VII: no fusion, with VE. A layer of words keeps the size.
_base_ = '../vipa_tiny_refshapes.py'
model = dict(encoder=dict(fusion=None), word_layers=1)
