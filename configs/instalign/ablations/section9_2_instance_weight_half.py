# Section 9.2: half the weight of the instance losses.
_base_ = '../instalign_swinb_grefcoco.py'
model = dict(instance_weight=0.5, merged_weight=1.0)
