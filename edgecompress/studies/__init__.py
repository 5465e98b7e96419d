"""Search over the options of a run. Trials are run folders; the study is in a database that several hosts may share.

study.py         the whole search
space.py         options that may vary, one row each
samplers.py      proposals for the next trial
loop.py          trials begun, resumed after a crash, and ended
trial.py         one trial: a run folder, exported and measured
claims.py        one process at a time runs a trial
storage.py       the database and the study in it
drift.py         latencies of trials corrected for the drift of the machine
pareto_front.py  the Pareto front of accuracy, latency and size
"""
