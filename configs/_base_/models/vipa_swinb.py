# VIPA: Swin-B and BERT-base with bidirectional early fusion, as in CrossVLT (same authors): BERT is
# cut into 6, 1, 1, and 1 layers, its last three are dropped, embeddings stay as pretrained, dropout
# is on. The paper gives r and eqs. 1-8, but no widths or number of heads; docs/models.md lists our
# choices and the reasons.
_base_ = 'swinb_bert.py'
inputs = dict(tokenizer=dict(max_words=21))  # including special ones, as in VIPA and CrossVLT
model = dict(
    type='VIPA',
    encoder=dict(
        text=dict(
            config=dict(hidden_dropout_prob=0.1, attention_probs_dropout_prob=0.1),
            stages=(6, 1, 1, 1),
            train_embeddings=False,
        ),
        fusion=dict(type='StagedCrossAttention', head_dim=64, updates_words='between'),
    ),
    key_values='visual',
    num_heads=8,
    cues=dict(global_cue=True, local_cues=True),
    generator=dict(joint_dim=512, ratio=0.3, temperature=1.0, noise=1.0, refine=True, ffn_ratio=4),
    decoder=dict(width=512, ffn_ratio=1),
    supervision=dict(mask=1.0, dice=1.0, relevance=1.0, scores='contrastive', relevant_share=0.0),
)
sync_bn = 'torch'

_tiny = dict(
    model=dict(
        encoder=dict(text=dict(config=dict(num_hidden_layers=4), stages=(1, 1, 1, 1)), fusion=dict(head_dim=8)),
        num_heads=2,
        decoder=dict(width=32),
    )
)
