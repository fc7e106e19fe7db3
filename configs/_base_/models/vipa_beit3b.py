# VIPA on BEiT-3-B (Table II). The paper gives only the encoder's name. Levels of strides 4, 8, and
# 16 come from its last layer; the rest is the same as on Swin-B.
_base_ = 'beit3b.py'
inputs = dict(tokenizer=dict(max_words=21))  # including special ones, for all data sets of the paper
model = dict(
    type='VIPA',
    encoder=dict(level_scales=(4, 2, 1)),
    key_values='visual',
    num_heads=8,
    cues=dict(global_cue=True, local_cues=True),
    generator=dict(joint_dim=512, ratio=0.3, temperature=1.0, noise=1.0, refine=True, ffn_ratio=4),
    decoder=dict(width=512, ffn_ratio=1),
    supervision=dict(mask=1.0, dice=1.0, relevance=1.0, scores='contrastive', relevant_share=0.0),
)
sync_bn = 'torch'

_tiny = dict(model=dict(num_heads=2, decoder=dict(width=32)))
