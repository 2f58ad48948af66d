"""Rehearsals: short measurements of every stage, and what the complete run will take."""
