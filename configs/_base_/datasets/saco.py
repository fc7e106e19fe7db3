# SA-Co: phrases that name a kind of object, scored by cgF1. The file has no splits. Name another one with
# {train,val,test}_dataloader.dataset.annotations.file (docs/data.md says where they come from).
_base_ = 'refcoco.py'
_annotations = dict(_delete_=True, format='saco', file='data/saco/saco.json')
_dataset = dict(annotations=_annotations, image_root='data/images/saco', split=None)

train_dataloader = dict(dataset=dict(**_dataset, sentences='all'))
val_dataloader = dict(dataset=_dataset)
test_dataloader = dict(dataset=_dataset)
val_evaluator = dict(protocols=('saco', 'refseg'), save_best='saco/cgF1')
test_evaluator = val_evaluator
