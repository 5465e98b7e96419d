"""The steps of a run: one table, the context that they share, and the runner that orders and reuses them.

steps.py         the table; nothing heavy is imported
context.py       what all steps read
step_keys.py     what a step's result depends on
runner.py        order, reuse and progress
make_*.py        one step each
networks.py      the networks of a run, loaded from its files
latencies.py     latencies of layers, for plans and `profile`
publication.py   artifacts measured, the report written
run_records.py   all that a run folder holds
"""
