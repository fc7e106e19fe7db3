# DMMI as published: LAVT's encoders with a fusion in both directions.
_base_ = 'lavt_swinb.py'
model = dict(type='DMMI', encoder=dict(fusion=dict(type='MultiScaleFusion')), num_words=20)
_tiny = dict(model=dict(layer=dict(ffn_dim=64)))
