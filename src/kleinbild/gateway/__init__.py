"""The server: OpenAI's image API and jobs over the providers. No torch here."""
