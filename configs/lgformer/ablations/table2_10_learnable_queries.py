# Table 2: ten learnable queries, whose masks an MLP merges.
_base_ = '../lgformer_swinb_refcocoplus.py'
model = dict(prototype=dict(query='learnable', num_queries=10))
