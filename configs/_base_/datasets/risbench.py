# RISBench: remote sensing, imported by `refseg data import RISBench --out data/risbench/risbench.jsonl`, scored as LAVT is.
_base_ = 'jsonl.py'
_dataset = dict(annotations=dict(file='data/risbench/risbench.jsonl'))

train_dataloader = dict(drop_last=True, dataset=_dataset)
val_dataloader = dict(dataset=_dataset)
test_dataloader = dict(dataset=dict(**_dataset, split='test'))
val_evaluator = dict(save_best='refseg/oIoU')
test_evaluator = val_evaluator
