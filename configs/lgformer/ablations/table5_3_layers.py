# Table 5: three layers in the pixel decoder and in the prototype generator.
_base_ = '../lgformer_swinb_refcocoplus.py'
model = dict(pixel_decoder=dict(num_layers=3), prototype=dict(num_layers=3))
