# RefCOCO, RefCOCO+, and RefCOCOg together, without training images that any of them evaluates on
# (section 12.2).
_base_ = [
    '../_base_/datasets/refcoco_mixed.py',
    '../_base_/models/instalign_swinb.py',
    '../_base_/schedules/adamw_linear.py',
    '../_base_/default_runtime.py',
]
