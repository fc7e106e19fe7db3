# Ref-ZOM: zero, one, or many referents, on the COCO 2014 train and val images in one folder. It has
# no val split, so 2 % of the training images are held out.
_base_ = 'refcoco.py'
_annotations = dict(refs='data/ref-zom/refs(final).p', instances='data/ref-zom/instances.json')
_common = dict(annotations=_annotations, image_root='data/images/trainval2014')

train_dataloader = dict(dataset=dict(_common, sentences='all', hold_out=dict(share=0.02, use='rest')))
val_dataloader = dict(dataset=dict(_common, split='train', hold_out=dict(share=0.02, use='held_out')))
test_dataloader = dict(dataset=dict(_common, split='test'))
val_evaluator = dict(protocols=('refzom', 'refseg'), save_best='refzom/oIoU')
test_evaluator = val_evaluator
