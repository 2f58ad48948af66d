"""The distilled student on its own: pictures in, names and probabilities out.

A copy of this folder lies in every registered model and is what runs there. It imports torch,
numpy, Pillow and safetensors, nothing of the project's, and its own modules by relative names.
"""
