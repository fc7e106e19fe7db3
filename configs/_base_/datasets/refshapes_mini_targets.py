# RefShapes mini for models that cannot reject a phrase: without no-target expressions.
_base_ = ['refshapes_mini.py']
train_dataloader = dict(dataset=dict(no_target='drop'))
val_dataloader = dict(dataset=dict(no_target='drop'))
test_dataloader = dict(dataset=dict(no_target='drop'))
val_evaluator = dict(save_best='refseg/oIoU')
test_evaluator = val_evaluator
