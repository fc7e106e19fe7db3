# Table 3d, "ReLA + InstAlign": ReLA's decoder with InstAlign's instance supervision and heads.
_base_ = '../instalign_swinb_grefcoco.py'
model = dict(decoder=dict(type='RegionDecoder', zero_words=False))  # zero words have no direction to align with
