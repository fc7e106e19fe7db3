# As adamw_poly.py, with the names of BEiT-3's parameters: no decay for norms outside the decoder, for position tables and
# for the class token.
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
