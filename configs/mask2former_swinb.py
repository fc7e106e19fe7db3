_base_ = 'instalign/ablations/table3d_mask2former.py'
