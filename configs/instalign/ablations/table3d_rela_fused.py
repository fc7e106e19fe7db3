# "ReLA + InstAlign" with ReLA's fusion in the encoder too, which Table 3d does not mention: the
# other reading of that row. Images are then encoded once per phrase.
_base_ = 'table3d_rela.py'
model = dict(encoder=dict(fusion=dict(type='PWAM')))
