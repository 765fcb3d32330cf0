"""Ensemble-distillation: the jobs between its trainings."""
