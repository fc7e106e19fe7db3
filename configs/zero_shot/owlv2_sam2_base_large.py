# OWLv2's scores are lower: 0.1 is its processor's default threshold.
_base_ = 'grounded_sam2_base_large.py'

model = dict(
    detector='google/owlv2-base-patch16-ensemble',
    min_score=0.05,
    postprocess=dict(instance_threshold=0.1, no_target_threshold=0.9),
)
test_evaluator = dict(no_target=dict(threshold=0.9))
