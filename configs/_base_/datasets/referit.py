# ReferIt (RefCLEF, Berkeley split), on images of IAPR TC-12.
_base_ = 'refcoco.py'
_annotations = dict(refs='data/refclef/refs(berkeley).p', instances='data/refclef/instances.json')

train_dataloader = dict(dataset=dict(annotations=_annotations, image_root='data/images/saiapr_tc-12'))
val_dataloader = dict(dataset=dict(annotations=_annotations, image_root='data/images/saiapr_tc-12'))
test_dataloader = dict(dataset=dict(annotations=_annotations, image_root='data/images/saiapr_tc-12', split='test'))
