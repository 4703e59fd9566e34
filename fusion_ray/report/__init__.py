"""What the report says and how it looks: from scored held-out shards to report.json and one HTML file. No ray here.

heldout.py         all models' scores of one held-out shard, on the same bytes
numbers.py         from documents to rates, differences, oracle, calibration and the verdict
choices.py         whom the fused sets chose, by domain
weights.py         merge weights by layer and module
history.py         what the manifests and training logs of the run tell
samples.py         held-out prompts, and what the models answer
alignment_view.py  held-out answers in two tokenizations
page.py            report.html from report.json's content
figures.py         its plots, as plain data
model_card.py      the scores in the merged model's README
"""
