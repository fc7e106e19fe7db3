# SAM 3 with a small text encoder.
_base_ = 'sam3.py'

model = dict(pretrained='yonigozlan/sam3-litetext-s0')
