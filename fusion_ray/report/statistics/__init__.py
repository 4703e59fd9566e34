"""Did fusion work: bits per byte, intervals, the oracle and calibration, as pure functions on arrays.

common_bytes.py   what every model covers of an answer, so that all are judged on the same bytes
rates.py          bits per byte by domain and overall
bootstrap.py      intervals and p-values of differences, paired by document
oracle.py         the best model of each document, and how much of its gain fusion recovers
calibration.py    whether a model is right as often as it is sure
verdict.py        the result in plain words
"""
