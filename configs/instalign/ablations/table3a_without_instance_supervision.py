# Table 3a: no instance supervision, the merged mask and no-target alone.
_base_ = '../instalign_swinb_grefcoco.py'
model = dict(instance_weight=0.0)
