# LAVT as published: the embeddings and the last two layers of BERT stay as pretrained.
_base_ = 'swinb_bert.py'
model = dict(
    type='LAVT',
    encoder=dict(text=dict(train_embeddings=False, trained_layers=10), fusion=dict(type='PWAM')),
)
sync_bn = 'torch'
_tiny = dict(model=dict(encoder=dict(text=dict(trained_layers=2))))
