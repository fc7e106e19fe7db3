# RefShapes, Table VIII, row 1: scores are not supervised.
_base_ = '../vipa_tiny_refshapes.py'
model = dict(supervision=dict(scores=None))
