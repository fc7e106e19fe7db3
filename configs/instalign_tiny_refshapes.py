_base_ = 'instalign/instalign_tiny_refshapes.py'
