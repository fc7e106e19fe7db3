# Table 3e, or section 9.5 for few: 200 queries.
_base_ = '../instalign_swinb_grefcoco.py'
model = dict(decoder=dict(num_queries=200))
