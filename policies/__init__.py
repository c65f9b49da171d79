"""Policies: named signals in, a decision with a propensity out.

Knows nothing of models, tokens or SQL.
"""
