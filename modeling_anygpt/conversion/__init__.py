"""Reading what others released: official files in, models of this package out. The only place that opens pickles."""
