"""Measuring: sets, judges, figures, reports."""
