# Table 3a: Mask2Former's instance supervision, without phrase-object alignment.
_base_ = '../instalign_swinb_grefcoco.py'
model = dict(instances=dict(poa=0.0))
