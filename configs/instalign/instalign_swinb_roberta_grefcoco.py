# Table 6.
_base_ = [
    '../_base_/datasets/grefcoco_roberta.py',
    '../_base_/models/instalign_swinb.py',
    '../_base_/schedules/adamw_linear.py',
    '../_base_/default_runtime.py',
]
model = dict(encoder=dict(text=dict(pretrained='roberta-base', config=dict(model_type='roberta'))))
