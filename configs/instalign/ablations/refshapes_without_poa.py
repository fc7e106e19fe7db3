# Table 3a on RefShapes: instance supervision without phrase-object alignment.
_base_ = '../instalign_tiny_refshapes.py'
model = dict(instances=dict(poa=0.0))
