# Table 2 on RefShapes: one learnable query.
_base_ = '../lgformer_tiny_refshapes.py'
model = dict(prototype=dict(query='learnable', num_queries=1))
