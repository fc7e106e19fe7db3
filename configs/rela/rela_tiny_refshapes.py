# ReLA with fusion and the losses that InstAlign has on RefShapes (with its own:
# rela_tiny_refshapes_own_losses). A step has 6 phrases of each image. InstAlign's steps have 18, so
# set train_dataloader.dataset.expressions_per_image=18 to compare them at equal numbers of phrases.
_base_ = [
    '../_base_/datasets/refshapes_mini.py',
    '../_base_/models/rela_tiny.py',
    '../_base_/schedules/refshapes_mini.py',
    '../_base_/default_runtime.py',
]
default_hooks = dict(logger=dict(interval=25))
