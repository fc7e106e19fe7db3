# DeRIS on gRefCOCO: 6 epochs of Adam (AMSGrad), the last one at a tenth of the rate; BEiT-3 learns at
# half the rate. The published code gives a batch of 1 per GPU there and 16 for the mixed sets, but
# not the number of GPUs; 64 in total is our choice.
optim_wrapper = dict(
    type='GuardedOptimWrapper',
    constructor='EncoderRatesConstructor',
    optimizer=dict(type='Adam', lr=5e-5, betas=(0.9, 0.98), eps=1e-9, amsgrad=True),
    clip_grad=dict(max_norm=0.15),
    paramwise_cfg=dict(new_parts_lr_mult=2.0),
)
param_scheduler = [dict(type='MultiStepLR', milestones=[5], gamma=0.1, by_epoch=True)]

train_cfg = dict(type='ResumableTrainLoop', max_epochs=6, val_interval=1)
val_cfg = dict(type='ValLoop')
test_cfg = dict(type='TestLoop')

auto_scale_lr = dict(enable=False, base_batch_size=64)  # total batch size for lr
