# R-RefCOCO: no-target expressions beside each object's own. Training samples from both, as R-RIS
# does.
_base_ = 'refcoco.py'
_annotations = dict(refs='data/rrefcoco/refs(unc).p', instances='data/rrefcoco/instances.json')

train_dataloader = dict(dataset=dict(annotations=_annotations))
val_dataloader = dict(dataset=dict(annotations=_annotations))
test_dataloader = dict(dataset=dict(annotations=_annotations, split='val'))
val_evaluator = dict(protocols=('rrefcoco', 'refseg'), save_best='rrefcoco/rIoU')
test_evaluator = val_evaluator
