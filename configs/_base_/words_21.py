# Pipelines of _base_/datasets/refcoco.py with 21 tokens, special ones counted: VIPA's and CrossVLT's length. A leaf names
# them, because lists of a base are replaced and not merged.
_load_21 = [
    dict(type='LoadImage'),
    dict(type='Resize', size=(480, 480)),
    dict(type='LoadText', tokenizer=dict(pretrained='bert-base-uncased', max_words=21)),
]
_train_21 = [*_load_21, dict(type='PackSample')]
_test_21 = [*_load_21, dict(type='PackSample', with_ground_truth=True)]
