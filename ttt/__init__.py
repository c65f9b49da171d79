"""Test-time training: tasks, prompts, in-context learning, LoRA training and the engine that owns one model.

Knows nothing of policies, SQL or LangGraph.
"""
