# Table I, with a dagger: RefCOCO, RefCOCO+ and RefCOCOg together, without the images that any of them evaluates on.
_base_ = [
    '../_base_/datasets/refcoco_mixed.py',
    '../_base_/words_21.py',
    '../_base_/models/vipa_swinb.py',
    '../_base_/schedules/adamw_poly_vipa.py',
    '../_base_/default_runtime.py',
]
_parts = [dict(part, pipeline=_base_._train_21) for part in _base_.train_dataloader.dataset.datasets]
train_dataloader = dict(batch_size=4, dataset=dict(datasets=_parts))
val_dataloader = dict(dataset=dict(pipeline=_base_._test_21))
test_dataloader = dict(dataset=dict(pipeline=_base_._test_21))
