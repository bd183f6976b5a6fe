"""OpenAI's endpoints, one module each, and their wire formats."""
