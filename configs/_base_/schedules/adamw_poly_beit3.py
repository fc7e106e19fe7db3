# The same as adamw_poly.py for BEiT-3's parameter names: no decay for norms outside the decoder,
# position tables, and the class token.
_base_ = 'adamw_poly.py'
optim_wrapper = dict(
    paramwise_cfg=dict(
        custom_keys={
            '_delete_': True,
            'positions.': dict(decay_mult=0.0),
            'class_token': dict(decay_mult=0.0),
            'decoder.': dict(decay_mult=1.0),
            'norm': dict(decay_mult=0.0),
        }
    )
)
