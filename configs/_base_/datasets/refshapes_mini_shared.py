# RefShapes mini for models that look at an image once for all its phrases: all 18 of a training image in each step.
_base_ = ['refshapes_mini.py']
train_dataloader = dict(dataset=dict(expressions_per_image=18))
