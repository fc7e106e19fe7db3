# RefCOCOg, Google split: split by object, so train and val share images. Its test split was never
# released.
_base_ = 'refcoco.py'
_annotations = dict(refs='data/refcocog/refs(google).p', instances='data/refcocog/instances.json')

train_dataloader = dict(dataset=dict(annotations=_annotations))
val_dataloader = dict(dataset=dict(annotations=_annotations))
test_dataloader = dict(dataset=dict(annotations=_annotations, split='val'))
