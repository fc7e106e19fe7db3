_load = [
    dict(type='LoadImage'),
    dict(size=(
        96,
        96,
    ), type='Resize'),
    dict(
        tokenizer=dict(
            max_words=24, word_list='data/refshapes_mini/words.txt'),
        type='LoadText'),
]
_root = 'data/refshapes_mini'
_test_pipeline = [
    dict(type='LoadImage'),
    dict(size=(
        96,
        96,
    ), type='Resize'),
    dict(
        tokenizer=dict(
            max_words=24, word_list='data/refshapes_mini/words.txt'),
        type='LoadText'),
    dict(type='PackSample', with_ground_truth=True),
]
_train_pipeline = [
    dict(type='LoadImage'),
    dict(size=(
        96,
        96,
    ), type='Resize'),
    dict(
        tokenizer=dict(
            max_words=24, word_list='data/refshapes_mini/words.txt'),
        type='LoadText'),
    dict(type='PackSample'),
]
_vis_backends = [
    dict(type='LocalVisBackend'),
    dict(type='TensorboardVisBackend'),
]
auto_scale_lr = dict(base_batch_size=8, enable=False)
custom_hooks = [
    dict(type='StepSeedHook'),
    dict(max_in_a_row=5, type='NonFiniteLossHook'),
    dict(type='TextTruncationHook'),
    dict(type='ProgressBarHook'),
]
default_hooks = dict(
    checkpoint=dict(
        interval=1,
        max_keep_ckpts=2,
        rule='greater',
        save_best='auto',
        type='SafeCheckpointHook'),
    logger=dict(interval=25, type='LoggerHook'),
    param_scheduler=dict(type='ParamSchedulerHook'),
    sampler_seed=dict(type='DistSamplerSeedHook'),
    timer=dict(type='IterTimerHook'))
default_scope = 'refseg'
env_cfg = dict(
    cudnn_benchmark=False,
    dist_cfg=dict(backend='nccl'),
    mp_cfg=dict(mp_start_method='fork', opencv_num_threads=0))
load_from = None
load_from_partial = False
log_level = 'INFO'
log_processor = dict(by_epoch=True)
model = dict(
    aggregation='soft',
    data_preprocessor=dict(size_divisor=16, type='ReferringDataPreprocessor'),
    decoder=dict(
        ffn_dim=192,
        num_blocks=3,
        num_heads=4,
        num_queries=16,
        type='ObjectTextDecoder'),
    embed_dim=96,
    encoder=dict(
        text=dict(
            config=dict(
                attention_probs_dropout_prob=0.0,
                hidden_dropout_prob=0.0,
                hidden_size=96,
                intermediate_size=192,
                max_position_embeddings=32,
                model_type='bert',
                num_attention_heads=4,
                num_hidden_layers=2,
                vocab_size=256),
            type='TextEncoder'),
        type='FusedEncoder',
        vision=dict(
            depths=(
                1,
                2,
                2,
                1,
            ),
            dims=(
                24,
                48,
                96,
                96,
            ),
            stride=2,
            type='ConvEncoder')),
    init='heads',
    instances=dict(num_points=112, poa=1.0, unmatched=0.5),
    mask_dim=32,
    merged_dice_weight=10.0,
    merged_weight=10.0,
    no_target=dict(features='concat_mask'),
    no_target_weight=3.0,
    pixel_decoder=dict(embed_dim=32, ffn_dim=64, num_heads=4, num_layers=1),
    type='InstAlign')
optim_wrapper = dict(
    clip_grad=dict(max_norm=1.0),
    constructor='MuonConstructor',
    optimizer=dict(
        lr=0.001, muon_lr_ratio=5.0, type='MuonAdamW', weight_decay=0.05),
    paramwise_cfg=dict(
        bias_decay_mult=0.0, flat_decay_mult=0.0, norm_decay_mult=0.0),
    type='GuardedOptimWrapper')
param_scheduler = [
    dict(begin=0, by_epoch=False, end=50, start_factor=0.02, type='LinearLR'),
    dict(begin=50, by_epoch=False, eta_min=0.0, type='CosineAnnealingLR'),
]
randomness = dict(seed=0)
test_cfg = dict(type='TestLoop')
test_dataloader = dict(
    batch_size=8,
    collate_fn=dict(type='refseg.collate_samples'),
    dataset=dict(
        annotations=dict(
            file='data/refshapes_mini/refshapes.jsonl', format='jsonl'),
        pipeline=[
            dict(type='LoadImage'),
            dict(size=(
                96,
                96,
            ), type='Resize'),
            dict(
                tokenizer=dict(
                    max_words=24, word_list='data/refshapes_mini/words.txt'),
                type='LoadText'),
            dict(type='PackSample', with_ground_truth=True),
        ],
        split='test',
        type='ReferringDataset'),
    num_workers=1,
    sampler=dict(shuffle=False, type='EpochSampler'))
test_evaluator = dict(
    protocols=('refseg', ), save_best='refseg/gIoU', type='ReferringMetric')
train_cfg = dict(max_epochs=6, type='ResumableTrainLoop', val_interval=2)
train_dataloader = dict(
    batch_size=8,
    collate_fn=dict(type='refseg.collate_samples'),
    dataset=dict(
        annotations=dict(
            file='data/refshapes_mini/refshapes.jsonl', format='jsonl'),
        expressions_per_image=18,
        max_bad_samples=10,
        pipeline=[
            dict(type='LoadImage'),
            dict(size=(
                96,
                96,
            ), type='Resize'),
            dict(
                tokenizer=dict(
                    max_words=24, word_list='data/refshapes_mini/words.txt'),
                type='LoadText'),
            dict(type='PackSample'),
        ],
        split='train',
        type='ReferringDataset'),
    num_workers=1,
    persistent_workers=True,
    sampler=dict(shuffle=True, type='EpochSampler'))
val_cfg = dict(type='ValLoop')
val_dataloader = dict(
    batch_size=8,
    collate_fn=dict(type='refseg.collate_samples'),
    dataset=dict(
        annotations=dict(
            file='data/refshapes_mini/refshapes.jsonl', format='jsonl'),
        pipeline=[
            dict(type='LoadImage'),
            dict(size=(
                96,
                96,
            ), type='Resize'),
            dict(
                tokenizer=dict(
                    max_words=24, word_list='data/refshapes_mini/words.txt'),
                type='LoadText'),
            dict(type='PackSample', with_ground_truth=True),
        ],
        split='val',
        type='ReferringDataset'),
    num_workers=1,
    persistent_workers=True,
    sampler=dict(shuffle=False, type='EpochSampler'))
val_evaluator = dict(
    protocols=('refseg', ), save_best='refseg/gIoU', type='ReferringMetric')
visualizer = dict(
    type='Visualizer',
    vis_backends=[
        dict(type='LocalVisBackend'),
        dict(type='TensorboardVisBackend'),
    ])
wandb = dict(enable=False)
