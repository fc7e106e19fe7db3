# Table 2: one learnable query in place of the linguistic one.
_base_ = '../lgformer_swinb_refcocoplus.py'
model = dict(prototype=dict(query='learnable', num_queries=1))
