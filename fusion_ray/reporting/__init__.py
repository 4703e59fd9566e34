"""What the report says and how it looks: from scored held-out shards to report.json and one HTML file. No ray here.

heldout.py     all models' scores of one held-out shard, on the same bytes
numbers.py     from documents to rates, differences, oracle, calibration and the verdict
history.py     what the manifests and training logs of the run tell
choices.py     whom the fused sets chose, by domain
weights.py     merge weights by layer and module
page.py        report.html from report.json's content
figures.py     its plots, as plain data
"""
