# Latent-VG on BEiT-3-B: two latent expressions of 4 and 10 tokens, 100 concepts, margin 0.2, BCE 2
# and dice 0.5, as published; `distributor` and `average` are those of a public note on the paper.
# Our summary gives no other numbers; docs/models.md lists our choices and the reasons.
_base_ = 'beit3b.py'
model = dict(
    type='LatentVG',
    latents=dict(
        lengths=(4, 10),
        drop_rates=(0.4, 0.2),
        num_words=20,
        temperature=1.0,
        score_norm=True,
        class_token_std=1.0,
        apart=True,
    ),
    distributor='visual',
    concepts=dict(num_concepts=100, normalize='columns', centered=True),
    contrast=dict(loss='positive_margin', margin=0.2, temperature=0.07, weight=1.0),
    decoder=dict(width=256, scale=4, average='probs'),
    weights=dict(bce=2.0, dice=0.5),
)

_tiny = dict(model=dict(concepts=dict(num_concepts=6), decoder=dict(width=16)))
