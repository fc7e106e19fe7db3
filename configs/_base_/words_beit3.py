# Pipelines of _base_/datasets/refcoco.py with BEiT-3's tokens: XLM-R's SentencePiece, 20 of them, special ones counted, as
# most of the field has it on BEiT-3. A leaf names them, because lists of a base are replaced and not merged.
_load_beit3 = [
    dict(type='LoadImage'),
    dict(type='Resize', size=(480, 480)),
    dict(type='LoadText', tokenizer=dict(sentencepiece='data/weights/beit3.spm', max_words=20)),
]
_train_beit3 = [*_load_beit3, dict(type='PackSample')]
_test_beit3 = [*_load_beit3, dict(type='PackSample', with_ground_truth=True)]
