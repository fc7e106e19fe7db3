# RefCOCO (unc). The data sets in the same format inherit from this file. docs/data.md says where to
# get each of them. Training follows LAVT: one expression per object and epoch, squashed to a
# square, no augmentation. For exactly LAVT's pixels and masks use Resize(antialias=True) and
# PackSample(overlap='exclude', masks_at='original').
_annotations = dict(format='refer', refs='data/refcoco/refs(unc).p', instances='data/refcoco/instances.json')
_images = 'data/images/train2014'

# The model's file gives the image size and the tokenizer (`inputs`).
_load = [dict(type='LoadImage'), dict(type='Resize'), dict(type='LoadText')]
_train_pipeline = [*_load, dict(type='PackSample')]
_test_pipeline = [*_load, dict(type='PackSample', with_ground_truth=True)]

train_dataloader = dict(
    batch_size=8,
    drop_last=True,  # whole batches only, as in LAVT, CrossVLT, DMMI, and CGFormer
    num_workers=4,
    persistent_workers=True,
    sampler=dict(type='EpochSampler', shuffle=True),
    collate_fn=dict(type='refseg.collate_samples'),
    dataset=dict(
        type='ReferringDataset',
        annotations=_annotations,
        image_root=_images,
        split='train',
        sentences='one_per_object',
        expressions_per_image=1,
        max_bad_samples=10,
        pipeline=_train_pipeline,
    ),
)
val_dataloader = dict(
    batch_size=4,
    num_workers=4,
    persistent_workers=True,
    sampler=dict(type='EpochSampler', shuffle=False),
    collate_fn=dict(type='refseg.collate_samples'),
    dataset=dict(
        type='ReferringDataset', annotations=_annotations, image_root=_images, split='val', pipeline=_test_pipeline
    ),
)
# Another split: --cfg-options test_dataloader.dataset.split=testB
test_dataloader = dict(
    batch_size=4,
    num_workers=4,
    sampler=dict(type='EpochSampler', shuffle=False),
    collate_fn=dict(type='refseg.collate_samples'),
    dataset=dict(
        type='ReferringDataset', annotations=_annotations, image_root=_images, split='testA', pipeline=_test_pipeline
    ),
)
# `save_best` is the metric that selects the best checkpoint, for all configs of the data set.
val_evaluator = dict(type='ReferringMetric', protocols=('lavt', 'refseg'), save_best='lavt/oIoU')
test_evaluator = val_evaluator
