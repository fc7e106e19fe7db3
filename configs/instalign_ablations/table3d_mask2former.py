# Table 3d: "M2F + InstAlign".
_base_ = '../mask2former_swinb.py'
