"""How much the service bears: `cd tests && python -m load` (nine minutes, two quiet cores).

It runs `service` (the real service, with one more route) and `generator` as processes of their own,
which share the cores, and writes `reports/serving/table.md`.
"""
