"""A small model (student) that is trained on the predictions of a served model
(teacher).
"""
