# The smallest pair.
_base_ = 'grounded_sam2_base_large.py'

model = dict(detector='IDEA-Research/grounding-dino-tiny', masks='facebook/sam2.1-hiera-tiny')
