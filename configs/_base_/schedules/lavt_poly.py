# LAVT's parameter groups: no weight decay for Swin's norms and position tables, decay for everything else, BatchNorm,
# biases and BERT's norms included. Longer keys win.
_base_ = ['adamw_poly.py']
optim_wrapper = dict(
    paramwise_cfg=dict(
        _delete_=True,
        custom_keys={
            'relative_position_bias_table': dict(decay_mult=0.0),
            'decoder.': dict(decay_mult=1.0),
            'norm': dict(decay_mult=0.0),
        },
    )
)
