# Boxes by Grounding DINO, masks by SAM 2.1 (InstAlign, section 10). The paper gives no thresholds:
# 0.35 is the usual box threshold. `refseg calibrate` chooses better ones on a val split.
model = dict(
    type='GroundedSAM2',
    detector='IDEA-Research/grounding-dino-base',
    masks='facebook/sam2.1-hiera-large',
    postprocess=dict(instance_threshold=0.35, no_target_threshold=0.65),
)
inputs = dict(raw=True)
