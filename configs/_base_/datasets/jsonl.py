# Your own data in one JSONL file with splits train and val (docs/data.md): set _file, or override the three `file` keys.
_base_ = 'refcoco.py'
_annotations = dict(_delete_=True, format='jsonl', file='data/own/own.jsonl')

train_dataloader = dict(dataset=dict(annotations=_annotations, image_root=None, sentences='all'))
val_dataloader = dict(dataset=dict(annotations=_annotations, image_root=None))
test_dataloader = dict(dataset=dict(annotations=_annotations, image_root=None, split='val'))
val_evaluator = dict(protocols=('refseg',), save_best='refseg/gIoU')
test_evaluator = val_evaluator
