# SAM 3. Masks are resized as probabilities and instances need a score of 0.5, as in its own code.
model = dict(type='SAM3', pretrained='facebook/sam3', postprocess=dict(resize='probs'))
inputs = dict(raw=True)
