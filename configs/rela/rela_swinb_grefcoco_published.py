# ReLA as in the published code, for its weights. Four things differ from rela_swinb_grefcoco: PWAM's
# gates start at zero in both layers, so they never open; regions read padded words, 20 tokens for
# every phrase; a phrase that is cut loses its end token; and images are shrunk with antialiasing.
_base_ = 'rela_swinb_grefcoco.py'
inputs = dict(tokenizer=dict(keep_end=False))
model = dict(encoder=dict(fusion=dict(gate_init='zeros')), padded_words=20)

_load = [dict(type='LoadImage'), dict(type='Resize', antialias=True), dict(type='LoadText')]
_test_pipeline = [*_load, dict(type='PackSample', with_ground_truth=True)]
train_dataloader = dict(dataset=dict(pipeline=[*_load, dict(type='PackSample')]))
val_dataloader = dict(dataset=dict(pipeline=_test_pipeline))
test_dataloader = dict(dataset=dict(pipeline=_test_pipeline))
