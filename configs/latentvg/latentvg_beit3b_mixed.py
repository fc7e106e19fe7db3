# The paper's combined training: RefCOCO, RefCOCO+ and RefCOCOg, here without the images that any of them evaluates on.
_base_ = [
    '../_base_/datasets/refcoco_mixed.py',
    '../_base_/words_beit3.py',
    '../_base_/models/latentvg_beit3b.py',
    '../_base_/schedules/adamw_poly_latentvg.py',
    '../_base_/default_runtime.py',
]
_parts = [dict(part, pipeline=_base_._train_beit3) for part in _base_.train_dataloader.dataset.datasets]
train_dataloader = dict(batch_size=16, dataset=dict(datasets=_parts))
val_dataloader = dict(dataset=dict(pipeline=_base_._test_beit3))
test_dataloader = dict(dataset=dict(pipeline=_base_._test_beit3))
test_evaluator = dict(protocols=('lavt', 'rec', 'refseg'))
