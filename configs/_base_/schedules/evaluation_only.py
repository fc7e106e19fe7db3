# For models that are not trained.
val_cfg = dict(type='ValLoop')
test_cfg = dict(type='TestLoop')
