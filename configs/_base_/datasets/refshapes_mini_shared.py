# RefShapes mini for models that encode an image once for all its phrases: all 18 phrases of a
# training image in each step.
_base_ = ['refshapes_mini.py']
train_dataloader = dict(dataset=dict(expressions_per_image=18))
