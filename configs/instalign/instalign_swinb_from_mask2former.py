# Ours, not in the paper: InstAlign that starts from Mask2Former's published weights (Swin-B, COCO
# instances): its encoder, pixel decoder, queries, decoder and mask head (docs/convert.md). Words,
# relevance and "nothing here" are new. These weights have seen all of COCO train2017, and so the
# images of every val and test split of RefCOCO, RefCOCO+, RefCOCOg and gRefCOCO: scores are not
# comparable with those of models that start from ImageNet.
_base_ = 'instalign_swinb_grefcoco.py'
load_from = 'data/weights/mask2former_swinb_coco_instance.pkl'  # detectron2's file, or transformers' folder
model = dict(
    encoder=dict(vision=dict(pretrained=None)),  # Swin comes with load_from
    decoder=dict(first_masked=True),
)
