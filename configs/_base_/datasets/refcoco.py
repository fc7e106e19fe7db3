# RefCOCO (unc). The other sets of its kind inherit from this file; docs/data.md says where each comes from.
# Training as LAVT does it: one sentence of each object per epoch, squashed to 480 x 480, no augmentation. Its very
# pixels and masks too: Resize(antialias=True) and PackSample(overlap='exclude', masks_at='original').
_annotations = dict(format='refer', refs='data/refcoco/refs(unc).p', instances='data/refcoco/instances.json')
_images = 'data/images/train2014'

# The model's file gives the size and the tokenizer (`inputs`).
_load = [dict(type='LoadImage'), dict(type='Resize'), dict(type='LoadText')]
_train_pipeline = [*_load, dict(type='PackSample')]
_test_pipeline = [*_load, dict(type='PackSample', with_ground_truth=True)]

train_dataloader = dict(
    batch_size=8,
    drop_last=True,  # whole batches only, as LAVT, CrossVLT, DMMI and CGFormer train
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
# `save_best`: the metric that chooses the best checkpoint. All configs of a data set share it.
val_evaluator = dict(type='ReferringMetric', protocols=('lavt', 'refseg'), save_best='lavt/oIoU')
test_evaluator = val_evaluator
