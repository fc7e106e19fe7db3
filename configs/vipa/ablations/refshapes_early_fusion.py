# Table VII on RefShapes: fused after every stage, BERT cut in its middle. Larger: fusions are not taken from elsewhere.
_base_ = '../vipa_tiny_refshapes.py'
model = dict(
    encoder=dict(text=dict(stages=(1, 1)), fusion=dict(updates_words='between'), fused_stages=(0, 1, 2, 3)),
)
