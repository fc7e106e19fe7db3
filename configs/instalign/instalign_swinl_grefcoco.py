# Table 6: Swin-L.
_base_ = 'instalign_swinb_grefcoco.py'
model = dict(
    encoder=dict(
        vision=dict(arch='large', pretrained='data/weights/swin_large_patch4_window12_384_22k.pth'),
    )
)
