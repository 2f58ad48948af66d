"""Load tests of the server: `python -m benchmarks.load` (nine minutes on two quiet cores).

`service` (the real service and one more route) and `generator` run as processes of their own, which
share the cores. The results are written to `reports/serving/table.md`.
"""
