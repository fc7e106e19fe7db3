# ReferIt (RefCLEF, UNC split), on images of IAPR TC-12. Its testA and testB overlap by design.
_base_ = 'refcoco.py'
_annotations = dict(refs='data/refclef/refs(unc).p', instances='data/refclef/instances.json')

train_dataloader = dict(dataset=dict(annotations=_annotations, image_root='data/images/saiapr_tc-12'))
val_dataloader = dict(dataset=dict(annotations=_annotations, image_root='data/images/saiapr_tc-12'))
test_dataloader = dict(dataset=dict(annotations=_annotations, image_root='data/images/saiapr_tc-12', split='testA'))
