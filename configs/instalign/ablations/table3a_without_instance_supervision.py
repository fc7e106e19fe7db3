# Table 3a: no instance supervision, only the merged mask and no-target losses.
_base_ = '../instalign_swinb_grefcoco.py'
model = dict(instance_weight=0.0)
