# RefShapes, Table 2: one learnable query.
_base_ = '../lgformer_tiny_refshapes.py'
model = dict(prototype=dict(query='learnable', num_queries=1))
