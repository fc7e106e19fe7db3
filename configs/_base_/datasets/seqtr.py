# RefCOCO, RefCOCO+, and RefCOCOg (umd) in one JSON file in SeqTR's layout, which C3VG, DeRIS, and
# PropVG use (docs/data.md). An item is an entry with one of its expressions, as in their training.
# `exclude_images_of=[]` keeps the training images that other splits evaluate on, as they do.
_base_ = 'refcoco.py'
_file = 'data/seqtr_type/annotations/mixed-seg/instances_nogoogle_withid.json'
_annotations = dict(_delete_=True, format='seqtr', file=_file)
_evaluated = [
    *('val_refcoco_unc', 'testA_refcoco_unc', 'testB_refcoco_unc'),
    *('val_refcocoplus_unc', 'testA_refcocoplus_unc', 'testB_refcocoplus_unc'),
    *('val_refcocog_umd', 'test_refcocog_umd'),
]
_leak_filter = [dict(annotations=dict(format='seqtr', file=_file), split=_evaluated)]

train_dataloader = dict(dataset=dict(annotations=_annotations, exclude_images_of=_leak_filter))
val_dataloader = dict(dataset=dict(annotations=_annotations, split='val_refcoco_unc'))
test_dataloader = dict(dataset=dict(annotations=_annotations, split='testA_refcoco_unc'))
