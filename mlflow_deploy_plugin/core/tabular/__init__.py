"""Files of rows: CSV, JSON, JSON Lines and Parquet."""
