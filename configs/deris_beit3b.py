_base_ = 'deris/deris_beit3b_grefcoco.py'
