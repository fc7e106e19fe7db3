# The published 0.235 TFLOPs are either true FLOPs at 480 x 480 or multiply-accumulates at about this size.
_base_ = 'instalign_swinb_grefcoco.py'
inputs = dict(image_size=(640, 640))
