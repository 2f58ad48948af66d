"""The HTTP service around a registered student.

A request passes `app` (routes), `requests` (bodies within the limits), `model_manager` (batches,
the active version) and `worker` (decoding and the model, in a process of its own).
"""
