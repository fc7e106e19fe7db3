# Section 9.2: half the weight of the merged losses.
_base_ = '../instalign_swinb_grefcoco.py'
model = dict(instance_weight=1.0, merged_weight=0.5)
