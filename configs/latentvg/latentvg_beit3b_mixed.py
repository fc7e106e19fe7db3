# The paper's combined training on RefCOCO, RefCOCO+, and RefCOCOg, without training images that any
# of them evaluates on.
_base_ = [
    '../_base_/datasets/refcoco_mixed.py',
    '../_base_/models/latentvg_beit3b.py',
    '../_base_/schedules/adamw_poly_latentvg.py',
    '../_base_/default_runtime.py',
]
train_dataloader = dict(batch_size=16)
val_evaluator = dict(save_best='lavt/mIoU')  # the paper's metric
test_evaluator = dict(protocols=('lavt', 'rec', 'refseg'))
