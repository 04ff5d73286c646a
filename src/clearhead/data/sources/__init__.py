"""Where the documents of a corpus come from: text files, JSON, Parquet, data sets on the hub. One kind a file."""
