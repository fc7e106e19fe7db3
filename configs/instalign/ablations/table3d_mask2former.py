# Mask2Former whose queries see no text ("M2F + InstAlign" of Table 3d): which instance is meant, it can only guess.
_base_ = '../instalign_swinb_grefcoco.py'
model = dict(decoder=dict(reads_words=False))
