# RefCOCO, Google split: split by object, so images occur in several splits.
_base_ = 'refcoco.py'
_annotations = dict(refs='data/refcoco/refs(google).p', instances='data/refcoco/instances.json')

train_dataloader = dict(dataset=dict(annotations=_annotations))
val_dataloader = dict(dataset=dict(annotations=_annotations))
test_dataloader = dict(dataset=dict(annotations=_annotations, split='test'))
