# RefCOCOg (umd) by COCO category: trained on the seen categories, tested on the unseen ones. VIPA's
# Table IV needs both. For the seen categories: --cfg-options
# test_dataloader.dataset.categories=seen
_base_ = 'refcocog.py'
train_dataloader = dict(dataset=dict(categories='seen'))
val_dataloader = dict(dataset=dict(categories='seen'))
test_dataloader = dict(dataset=dict(categories='unseen'))
