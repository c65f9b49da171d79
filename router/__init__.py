"""The router: a LangGraph state machine and every way in to it.

The only package that imports `ttt`, `policies` and `store`.
"""
