# Table 3c: no-target only from the sentence.
_base_ = '../instalign_swinb_grefcoco.py'
model = dict(no_target=dict(features='sentence'))
