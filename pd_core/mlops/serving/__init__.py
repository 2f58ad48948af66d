"""HTTP service around a registered student.

A request passes through `app` (routes), `requests` (uploads within limits), `model_manager` (the
active model, batches) and `worker` (decoding and inference in a process of their own).
"""
