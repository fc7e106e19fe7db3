# CLIPSeg. Training changes its decoder alone.
model = dict(type='CLIPSeg', pretrained='CIDAS/clipseg-rd64-refined')
inputs = dict(raw=True)
