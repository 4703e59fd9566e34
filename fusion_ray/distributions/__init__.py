"""Stage `distributions`: every model scores the corpus."""
