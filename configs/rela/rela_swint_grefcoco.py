_base_ = [
    '../_base_/datasets/grefcoco.py',
    '../_base_/models/rela_swint.py',
    '../_base_/schedules/adamw_steps.py',
    '../_base_/iterations_runtime.py',
]
train_dataloader = dict(batch_size=12)  # on each of 4 GPUs
