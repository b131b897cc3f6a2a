"""Batch prediction without a server: files of any size, in a folder or a bucket, on all
local cores or on Spark.
"""
