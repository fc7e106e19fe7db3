# Table 3c: no-target from the mean of all queries.
_base_ = '../instalign_swinb_grefcoco.py'
model = dict(no_target=dict(features='mean'))
