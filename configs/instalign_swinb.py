_base_ = 'instalign/instalign_swinb_grefcoco.py'
