_base_ = [
    '../_base_/datasets/refzom.py',
    '../_base_/models/grounded_sam2.py',
    '../_base_/schedules/evaluation_only.py',
    '../_base_/default_runtime.py',
]

# Score what the model answers: the protocol's own threshold is 0.5.
test_evaluator = dict(no_target=dict(threshold=0.65))
