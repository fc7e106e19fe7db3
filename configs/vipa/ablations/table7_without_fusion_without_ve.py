# Table VII, no fusion, without VE: pixels read BERT's words.
_base_ = 'table7_without_fusion.py'
model = dict(key_values='language', word_layers=2, cues=None, generator=None, supervision=dict(scores=None))
