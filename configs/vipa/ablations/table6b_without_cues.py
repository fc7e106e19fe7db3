# Table VI b, row 1: no cues, the same model as Table VI a without retrieval.
_base_ = 'table6a_without_retrieval.py'
