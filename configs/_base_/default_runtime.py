default_scope = 'refseg'
randomness = dict(seed=0)  # for data order, dropout, and augmentation
env_cfg = dict(
    cudnn_benchmark=False,
    mp_cfg=dict(mp_start_method='fork', opencv_num_threads=0),
    dist_cfg=dict(backend='nccl'),  # gloo without a GPU
)

default_hooks = dict(
    timer=dict(type='IterTimerHook'),
    # Metrics of a validation belong to its iteration: there may be several in an epoch.
    logger=dict(type='LoggerHook', interval=50, log_metric_by_epoch=False),
    param_scheduler=dict(type='ParamSchedulerHook'),
    # 'auto': the metric in the data set's file (val_evaluator.save_best).
    checkpoint=dict(type='SafeCheckpointHook', interval=1, max_keep_ckpts=2, save_best='auto', rule='greater'),
    sampler_seed=dict(type='DistSamplerSeedHook'),
)
custom_hooks = [
    dict(type='StepSeedHook'),
    dict(type='NonFiniteLossHook', max_in_a_row=5),  # None: no limit
    dict(type='TextTruncationHook'),
]

_vis_backends = [dict(type='LocalVisBackend'), dict(type='TensorboardVisBackend')]
visualizer = dict(type='Visualizer', vis_backends=_vis_backends)
wandb = dict(enable=False)  # enable=True logs there too; other keys (project, name, ...) go to wandb.init

log_level = 'INFO'
log_processor = dict(by_epoch=True)
load_from = None  # weights to start training from; tests only read the checkpoint they are given
load_from_partial = False  # True: accept a file with less than half of the model's tensors
resume = False
