# Your own data in one JSONL file with the splits train and val (docs/data.md). For another file,
# set {train,val,test}_dataloader.dataset.annotations.file.
_base_ = 'refcoco.py'
_annotations = dict(_delete_=True, format='jsonl', file='data/own/own.jsonl')

# Your own data may be smaller than a batch.
train_dataloader = dict(drop_last=False, dataset=dict(annotations=_annotations, image_root=None, sentences='all'))
val_dataloader = dict(dataset=dict(annotations=_annotations, image_root=None))
test_dataloader = dict(dataset=dict(annotations=_annotations, image_root=None, split='val'))
val_evaluator = dict(protocols=('refseg',), save_best='refseg/gIoU')
test_evaluator = val_evaluator
