# Table VI b, row 1: no cues, which is Table VI a without step 1.
_base_ = 'table6a_without_retrieval.py'
