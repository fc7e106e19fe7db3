# ReferIt (RefCLEF, split of UNC), on IAPR TC-12; its testA and testB overlap, as its authors meant it.
_base_ = 'refcoco.py'
_annotations = dict(refs='data/refclef/refs(unc).p', instances='data/refclef/instances.json')

train_dataloader = dict(dataset=dict(annotations=_annotations, image_root='data/images/saiapr_tc-12'))
val_dataloader = dict(dataset=dict(annotations=_annotations, image_root='data/images/saiapr_tc-12'))
test_dataloader = dict(dataset=dict(annotations=_annotations, image_root='data/images/saiapr_tc-12', split='testA'))
