# gRefCOCO: none, one, or several referents. Every expression is a sample, as in ReLA.
_base_ = 'refcoco.py'
_annotations = dict(refs='data/grefcoco/grefs(unc).json', instances='data/grefcoco/instances.json')

train_dataloader = dict(dataset=dict(annotations=_annotations, sentences='all'))
val_dataloader = dict(dataset=dict(annotations=_annotations))
test_dataloader = dict(dataset=dict(annotations=_annotations))
val_evaluator = dict(protocols=('gres', 'refseg'), save_best='gres/gIoU')
test_evaluator = val_evaluator
