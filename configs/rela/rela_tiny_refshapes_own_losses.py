# ReLA with fusion and its own losses: their published weights, no dice, and its labels of regions.
# rela_tiny_refshapes is the same model with the losses that InstAlign has on RefShapes.
_base_ = 'rela_tiny_refshapes.py'
model = dict(weight=5.0, dice_weight=0.0, no_target_weight=0.1, minimap_target='truncated')
