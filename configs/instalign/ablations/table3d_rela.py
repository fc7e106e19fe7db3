# Table 3d: "ReLA + InstAlign", ReLA's decoder with instance supervision and all that follows from it.
_base_ = '../instalign_swinb_grefcoco.py'
model = dict(decoder=dict(type='RegionDecoder', zero_words=False))  # a word of zeros has no direction to align with
