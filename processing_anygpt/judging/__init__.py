"""What the metrics of `eval/metrics` share: intervals, distances, text normalisers, embeddings by learned judges."""
