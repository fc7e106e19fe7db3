# Table I, dagger: RefCOCO, RefCOCO+, and RefCOCOg together, without training images that any of
# them evaluates on.
_base_ = [
    '../_base_/datasets/refcoco_mixed.py',
    '../_base_/models/vipa_swinb.py',
    '../_base_/schedules/adamw_poly_vipa.py',
    '../_base_/default_runtime.py',
]
train_dataloader = dict(batch_size=4)
