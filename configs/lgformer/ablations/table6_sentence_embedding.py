# Table 6: pixels read the mean of the words.
_base_ = '../lgformer_swinb_refcocoplus.py'
model = dict(pixel_decoder=dict(l2va='sentence'))
