# A share of 0.15 of the phrases is replaced by others that refer to nothing in the image.
_base_ = [
    '../_base_/datasets/grefcoco.py',
    '../_base_/models/deris_beit3l.py',
    '../_base_/schedules/adam_steps_deris.py',
    '../_base_/default_runtime.py',
]
train_dataloader = dict(batch_size=16, dataset=dict(negative_rate=0.15))
test_evaluator = dict(protocols=('deris', 'gres', 'refseg'))
