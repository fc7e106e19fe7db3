# RRSIS-D: remote sensing, one object per phrase, with LAVT's protocol.
_base_ = 'refcoco.py'
_annotations = dict(refs='data/rrsisd/refs(unc).p', instances='data/rrsisd/instances.json')
_dataset = dict(annotations=_annotations, image_root='data/images/rrsisd/JPEGImages')

train_dataloader = dict(dataset=_dataset)
val_dataloader = dict(dataset=_dataset)
test_dataloader = dict(dataset=dict(**_dataset, split='test'))
