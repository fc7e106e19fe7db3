_base_ = [
    '../_base_/datasets/refcocog.py',
    '../_base_/models/rela_swinb.py',
    '../_base_/schedules/adamw_steps.py',
    '../_base_/iterations_runtime.py',
]
train_dataloader = dict(batch_size=12)  # on each of 4 GPUs
test_evaluator = dict(protocols=('gres', 'lavt', 'refseg'))
