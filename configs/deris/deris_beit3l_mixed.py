# Training on RefCOCO, RefCOCO+, and RefCOCOg (umd) together, without training images that any of them
# evaluates on: 10 queries, 20 tokens, 20 epochs, of which the first one has half the rate.
_base_ = [
    '../_base_/datasets/refcoco_mixed.py',
    '../_base_/models/deris_beit3l.py',
    '../_base_/schedules/adam_steps_deris.py',
    '../_base_/default_runtime.py',
]
inputs = dict(tokenizer=dict(max_words=20))
model = dict(decoder=dict(num_queries=10))
train_dataloader = dict(batch_size=16)
param_scheduler = [
    dict(type='ConstantLR', factor=0.5, end=1, by_epoch=True),
    dict(type='MultiStepLR', milestones=[14, 18], gamma=0.1, by_epoch=True),
]
train_cfg = dict(max_epochs=20)
val_evaluator = dict(save_best='lavt/mIoU')  # the metric of the published code
test_evaluator = dict(protocols=('lavt', 'refseg'))
