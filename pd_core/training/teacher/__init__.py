"""Prompt tuning of the teacher, and its stage."""
