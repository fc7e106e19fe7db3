# VIPA for RefShapes, trained from random weights: the encoders of conv_bert_tiny.py with late
# fusion (Table VII), so that phrases share the work on their image, and levels from stride 4 on, as
# in the paper. r = 0.3 is 11 of the 36 pixels of stride 16.
_base_ = 'conv_bert_tiny.py'
model = dict(
    type='VIPA',
    encoder=dict(
        # BERT's 0.02 is for 768 channels. With 96, [CLS] would start out the same for all phrases.
        text=dict(config=dict(initializer_range=0.1)),
        fusion=dict(type='StagedCrossAttention', head_dim=24, updates_words='always'),
        fused_stages=(3,),
        out_stages=(1, 2, 3),
    ),
    num_heads=4,
    generator=dict(joint_dim=96, ratio=0.3),
    decoder=dict(width=32),
)
