# RefCOCOg (umd): longer expressions.
_base_ = 'refcoco.py'
_annotations = dict(refs='data/refcocog/refs(umd).p', instances='data/refcocog/instances.json')

train_dataloader = dict(dataset=dict(annotations=_annotations))
val_dataloader = dict(dataset=dict(annotations=_annotations))
test_dataloader = dict(dataset=dict(annotations=_annotations, split='test'))
