# One object per phrase: the best instance, whatever its score.
_base_ = [
    '../_base_/datasets/refcocoplus.py',
    '../_base_/models/grounded_sam2.py',
    '../_base_/schedules/evaluation_only.py',
    '../_base_/default_runtime.py',
]

model = dict(postprocess=dict(max_instances=1, instance_threshold=0.0, no_target='none'))
test_evaluator = dict(no_target=dict(threshold=1.0))
