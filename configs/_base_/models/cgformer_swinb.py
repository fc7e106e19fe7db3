# CGFormer as published: LAVT's encoders with 8 heads of PWAM and BERT's dropout; all of BERT is
# trained. Tables of positions are for 480 x 480.
_base_ = 'swinb_bert.py'
model = dict(
    type='CGFormer',
    encoder=dict(
        text=dict(config=dict(hidden_dropout_prob=0.1, attention_probs_dropout_prob=0.1)),
        fusion=dict(type='PWAM', num_heads=8),
    ),
    decoder=dict(embed_dim=512, num_tokens=2, position_sides=(30, 60, 120)),
)
sync_bn = 'torch'
_tiny = dict(model=dict(decoder=dict(embed_dim=32, position_sides=(4, 8, 16))))
