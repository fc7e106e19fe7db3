# RefSegRS: remote sensing, imported by `refseg data import RefSegRS --out data/refsegrs/refsegrs.jsonl`, scored as LAVT is.
_base_ = 'jsonl.py'
_dataset = dict(annotations=dict(file='data/refsegrs/refsegrs.jsonl'))

train_dataloader = dict(drop_last=True, dataset=_dataset)
val_dataloader = dict(dataset=_dataset)
test_dataloader = dict(dataset=dict(**_dataset, split='test'))
val_evaluator = dict(save_best='refseg/oIoU')
test_evaluator = val_evaluator
