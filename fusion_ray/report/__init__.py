"""Stage `report`: did fusion work, and why: from scored held-out shards to report.json and one HTML file.

stage.py             what runs on Ray: scoring, comparing, writing
heldout.py           all models' scores of one held-out shard, on the same bytes
numbers.py           from documents to rates, differences, oracle, calibration and the verdict; statistics/ computes
choices.py           whom the fused sets chose, by domain
weights.py           merge weights by layer and module
history.py           what the manifests and training logs of the run tell
examples.py          sample answers (samples.py) and answers in two tokenizations (alignment_view.py)
evaluated_models.py  every model of the run as judge and benchmarks load it; kept.py keeps what was made of each
judge.py             answers to questions (questions.py, answering.py), asked of a judge (judge_prompts.py,
                     judge_client.py), and what it said (judging.py, judgments.py)
run_benchmarks.py    lm-evaluation-harness (harness.py, harness_tasks.py), compared in benchmarks.py
page.py              report.html from report.json's content; figures.py has its plots as plain data
model_card.py        the scores in the merged model's README
reading.py           reports of finished runs as objects
push.py              the merged model to the Hub
"""
