"""Standalone distilled student: classifies images with torch, numpy, Pillow and safetensors only.

Each registered model contains a copy of this package; its modules import each other relatively.
"""
