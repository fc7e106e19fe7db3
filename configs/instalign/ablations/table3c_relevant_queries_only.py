# Table 3c: no-target only from the queries, weighted by relevance.
_base_ = '../instalign_swinb_grefcoco.py'
model = dict(no_target=dict(features='relevant'))
