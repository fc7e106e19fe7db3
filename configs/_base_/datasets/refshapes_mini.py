# RefShapes mini: `refseg data refshapes --preset mini --out data/refshapes_mini`
_root = 'data/refshapes_mini'
_load = [
    dict(type='LoadImage'),
    dict(type='Resize', size=(96, 96)),
    # The closed word list belongs to the data, so it is not in a model's `inputs`.
    dict(type='LoadText', tokenizer=dict(word_list=f'{_root}/words.txt', max_words=24)),
]
_train_pipeline = [*_load, dict(type='PackSample')]
_test_pipeline = [*_load, dict(type='PackSample', with_ground_truth=True)]

train_dataloader = dict(
    batch_size=8,
    num_workers=1,
    persistent_workers=True,
    sampler=dict(type='EpochSampler', shuffle=True),
    collate_fn=dict(type='refseg.collate_samples'),
    dataset=dict(
        type='ReferringDataset',
        annotations=dict(format='jsonl', file=f'{_root}/refshapes.jsonl'),
        split='train',
        expressions_per_image=6,
        max_bad_samples=10,
        pipeline=_train_pipeline,
    ),
)
val_dataloader = dict(
    batch_size=8,
    num_workers=1,
    persistent_workers=True,
    sampler=dict(type='EpochSampler', shuffle=False),
    collate_fn=dict(type='refseg.collate_samples'),
    dataset=dict(
        type='ReferringDataset',
        annotations=dict(format='jsonl', file=f'{_root}/refshapes.jsonl'),
        split='val',
        pipeline=_test_pipeline,
    ),
)
test_dataloader = dict(
    batch_size=8,
    num_workers=1,
    sampler=dict(type='EpochSampler', shuffle=False),
    collate_fn=dict(type='refseg.collate_samples'),
    dataset=dict(
        type='ReferringDataset',
        annotations=dict(format='jsonl', file=f'{_root}/refshapes.jsonl'),
        split='test',
        pipeline=_test_pipeline,
    ),
)
val_evaluator = dict(type='ReferringMetric', protocols=('refseg',), save_best='refseg/gIoU')
test_evaluator = val_evaluator
