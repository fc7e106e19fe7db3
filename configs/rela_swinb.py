_base_ = 'rela/rela_swinb_grefcoco.py'
