_base_ = 'baseline/baseline_tiny_refshapes.py'
