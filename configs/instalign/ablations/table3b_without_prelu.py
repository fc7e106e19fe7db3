# Table 3b: instance aggregation without PReLU.
_base_ = '../instalign_swinb_grefcoco.py'
model = dict(aggregation='soft_without_prelu')
