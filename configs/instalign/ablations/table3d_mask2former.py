# Table 3d, "M2F + InstAlign": Mask2Former, whose queries do not read the text and can only guess
# the instance.
_base_ = '../instalign_swinb_grefcoco.py'
model = dict(decoder=dict(reads_words=False))
