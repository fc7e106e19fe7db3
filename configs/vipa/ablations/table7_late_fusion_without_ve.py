# Table VII, late fusion without VE.
_base_ = 'table7_late_fusion.py'
model = dict(key_values='language', word_layers=2, cues=None, generator=None, supervision=dict(scores=None))
