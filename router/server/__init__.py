"""The OpenAI-compatible server (`ttt-router serve`): needs the extra `server`."""
