"""The inference log: the answers of endpoints as Parquet files in a folder or a bucket.
Only the agent writes new rows.

- `LOG/endpoint=NAME/date=YYYY-MM-DD/hour=HH/<name>.parquet`: rows, by the hour of their
  event time
- `LOG/_labels/endpoint=NAME/date=YYYY-MM-DD/<name>.parquet`: true values, by the day of
  receipt
- `LOG/_failed/endpoint=…`: requests without an answer
"""
