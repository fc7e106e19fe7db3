# Table 3c: no-target from the queries, weighted by relevance, alone.
_base_ = '../instalign_swinb_grefcoco.py'
model = dict(no_target=dict(features='relevant'))
