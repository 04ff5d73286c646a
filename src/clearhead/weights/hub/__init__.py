"""Hugging Face's hub, downloads and OpenAI's official files."""
