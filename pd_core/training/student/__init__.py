"""Distillation of the student, its targets, and its stage."""
