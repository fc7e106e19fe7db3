# gRefCOCO at 640 x 640.
_base_ = 'grefcoco.py'
_load = [
    dict(type='LoadImage'),
    dict(type='Resize', size=(640, 640)),
    dict(type='LoadText', tokenizer=dict(pretrained='bert-base-uncased', max_words=20)),
]

train_dataloader = dict(dataset=dict(pipeline=[*_load, dict(type='PackSample')]))
val_dataloader = dict(dataset=dict(pipeline=[*_load, dict(type='PackSample', with_ground_truth=True)]))
test_dataloader = dict(dataset=dict(pipeline=[*_load, dict(type='PackSample', with_ground_truth=True)]))
