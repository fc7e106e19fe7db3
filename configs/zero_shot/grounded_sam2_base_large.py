# Grounding DINO base + SAM 2.1 Hiera-L, as in InstAlign's Table 8: gRefCOCO val cIoU 33.2, gIoU 42.0,
# N-acc 34.9.
_base_ = [
    '../_base_/datasets/grefcoco.py',
    '../_base_/models/grounded_sam2.py',
    '../_base_/schedules/evaluation_only.py',
    '../_base_/default_runtime.py',
]

# Score what the model answers: the protocols' own threshold is 0.5.
test_evaluator = dict(no_target=dict(threshold=0.65))
