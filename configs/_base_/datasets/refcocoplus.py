# RefCOCO+ (unc): expressions without words of absolute position.
_base_ = 'refcoco.py'
_annotations = dict(refs='data/refcoco+/refs(unc).p', instances='data/refcoco+/instances.json')

train_dataloader = dict(dataset=dict(annotations=_annotations))
val_dataloader = dict(dataset=dict(annotations=_annotations))
test_dataloader = dict(dataset=dict(annotations=_annotations))
