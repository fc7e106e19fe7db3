# RefShapes hard: `refseg data refshapes --preset hard --out data/refshapes_hard`
_base_ = 'refshapes_mini.py'
_root = 'data/refshapes_hard'
_annotations = dict(file=f'{_root}/refshapes.jsonl')
_load = [
    dict(type='LoadImage'),
    dict(type='Resize', size=(160, 160)),
    dict(type='LoadText', tokenizer=dict(word_list=f'{_root}/words.txt', max_words=32)),
]
_train_pipeline = [*_load, dict(type='PackSample')]
_test_pipeline = [*_load, dict(type='PackSample', with_ground_truth=True)]

train_dataloader = dict(
    num_workers=2, dataset=dict(annotations=_annotations, expressions_per_image=8, pipeline=_train_pipeline)
)
val_dataloader = dict(num_workers=2, dataset=dict(annotations=_annotations, pipeline=_test_pipeline))
# Compositions that do not occur in training: --cfg-options test_dataloader.dataset.split=heldout
test_dataloader = dict(num_workers=2, dataset=dict(annotations=_annotations, pipeline=_test_pipeline))
