# Section 9.5: 10 queries.
_base_ = '../instalign_swinb_grefcoco.py'
model = dict(decoder=dict(num_queries=10))
