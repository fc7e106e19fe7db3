# Table 3e: 200 queries.
_base_ = '../instalign_swinb_grefcoco.py'
model = dict(decoder=dict(num_queries=200))
