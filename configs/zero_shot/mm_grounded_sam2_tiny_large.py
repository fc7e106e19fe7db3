# MM Grounding DINO: the same network, trained on more open data.
_base_ = 'grounded_sam2_base_large.py'

model = dict(detector='openmmlab-community/mm_grounding_dino_tiny_o365v1_goldg_v3det')
