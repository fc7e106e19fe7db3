default_scope = 'refseg'
randomness = dict(seed=0)  # the order of data, dropout and augmentation derive from it
env_cfg = dict(
    cudnn_benchmark=False,
    mp_cfg=dict(mp_start_method='fork', opencv_num_threads=0),
    dist_cfg=dict(backend='nccl'),  # gloo where there is no GPU
)

default_hooks = dict(
    timer=dict(type='IterTimerHook'),
    logger=dict(type='LoggerHook', interval=50),
    param_scheduler=dict(type='ParamSchedulerHook'),
    # 'auto': by the metric that the data set's file names (val_evaluator.save_best).
    checkpoint=dict(type='SafeCheckpointHook', interval=1, max_keep_ckpts=2, save_best='auto', rule='greater'),
    sampler_seed=dict(type='DistSamplerSeedHook'),
)
custom_hooks = [
    dict(type='StepSeedHook'),
    dict(type='NonFiniteLossHook', max_in_a_row=5),  # None: skip and count for ever
    dict(type='TextTruncationHook'),
]

_vis_backends = [dict(type='LocalVisBackend'), dict(type='TensorboardVisBackend')]
visualizer = dict(type='Visualizer', vis_backends=_vis_backends)
wandb = dict(enable=False)  # enable=True logs there too; other keys (project, name, ...) go to wandb.init

log_level = 'INFO'
log_processor = dict(by_epoch=True)
load_from = None  # weights to start training from; a test reads the checkpoint that it is given, and no other
load_from_partial = False  # True: even if less than half of the model's tensors are in load_from
resume = False
