# RefShapes, Table VII: fusion after every stage, with BERT cut in the middle. The model is larger,
# since nothing else shrinks.
_base_ = '../vipa_tiny_refshapes.py'
model = dict(
    encoder=dict(text=dict(stages=(1, 1)), fusion=dict(updates_words='between'), fused_stages=(0, 1, 2, 3)),
)
