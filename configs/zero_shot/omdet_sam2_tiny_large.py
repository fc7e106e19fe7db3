# 0.3 is the default threshold of OmDet-Turbo's processor.
_base_ = 'grounded_sam2_base_large.py'

model = dict(
    detector='omlab/omdet-turbo-swin-tiny-hf',
    postprocess=dict(instance_threshold=0.3, no_target_threshold=0.7),
)
test_evaluator = dict(no_target=dict(threshold=0.7))
