# Table II: its rivals are trained on RefCOCO, RefCOCO+, and RefCOCOg together. The paper does not say
# whether VIPA is.
_base_ = [
    '../_base_/datasets/refcoco_mixed.py',
    '../_base_/models/vipa_beit3b.py',
    '../_base_/schedules/adamw_poly_beit3.py',
    '../_base_/default_runtime.py',
]
train_dataloader = dict(batch_size=4)
optim_wrapper = dict(optimizer=dict(lr=3e-5))
auto_scale_lr = dict(base_batch_size=16)
val_evaluator = dict(save_best='lavt/mIoU')  # Table II's metric
