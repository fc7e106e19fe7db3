# gRefCOCO for RoBERTa, which has another vocabulary.
_base_ = 'grefcoco.py'
_load = [
    dict(type='LoadImage'),
    dict(type='Resize', size=(480, 480)),
    dict(type='LoadText', tokenizer=dict(pretrained='roberta-base', max_words=20)),
]

train_dataloader = dict(dataset=dict(pipeline=[*_load, dict(type='PackSample')]))
val_dataloader = dict(dataset=dict(pipeline=[*_load, dict(type='PackSample', with_ground_truth=True)]))
test_dataloader = dict(dataset=dict(pipeline=[*_load, dict(type='PackSample', with_ground_truth=True)]))
