"""Search over the options of a run: trials are run folders, the study lies in a database that hosts may share.

space.py     what may be varied, one row an option
storage.py   the database and the study in it, as named errors where they cannot be had
samplers.py  who proposes the next trial
loop.py      trials begun, taken up again after a crash, ended
trial.py     one trial: a run folder, exported and measured
front.py     the Pareto front
study.py     the whole
"""
