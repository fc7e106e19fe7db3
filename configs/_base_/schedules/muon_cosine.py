# Muon for the weights of linear maps and convolutions, AdamW for the rest, with warm-up and cosine
# decay. From random weights (RefShapes) it needs half to three quarters of AdamW's steps. Configs
# set lr and epochs.
_base_ = 'adamw_cosine.py'
optim_wrapper = dict(
    constructor='MuonConstructor',
    optimizer=dict(_delete_=True, type='MuonAdamW', lr=1e-3, muon_lr_ratio=5.0, weight_decay=0.05),
)
param_scheduler = [
    dict(type='LinearLR', start_factor=0.02, by_epoch=False, begin=0, end=50),
    dict(type='CosineAnnealingLR', eta_min=0.0, by_epoch=False, begin=50),
]
