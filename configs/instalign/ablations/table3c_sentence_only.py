# Table 3c: no-target from the sentence alone.
_base_ = '../instalign_swinb_grefcoco.py'
model = dict(no_target=dict(features='sentence'))
