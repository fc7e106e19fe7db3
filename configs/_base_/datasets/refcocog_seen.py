# RefCOCOg (umd) by COCO category: trained on the seen ones, tested on the unseen (VIPA's Table IV asks for both).
# Tested on the seen: --cfg-options test_dataloader.dataset.categories=seen
_base_ = 'refcocog.py'
train_dataloader = dict(dataset=dict(categories='seen'))
val_dataloader = dict(dataset=dict(categories='seen'))
test_dataloader = dict(dataset=dict(categories='unseen'))
